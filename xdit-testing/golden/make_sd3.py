"""Two tiny Stable Diffusion 3 pipelines with random weights, and what every part of them puts out in diffusers.

    pip install -r xdit-testing/golden/requirements.txt
    python xdit-testing/golden/make_sd3.py

README.md says how the two differ and what the keys of the golden files mean.
"""

import shutil
from pathlib import Path

import common
import pipelines
import text
import torch
import vae
from common import HERE, PROMPTS, hook, randomise, save, under
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

CLIP = ["transformers", "CLIPTextModelWithProjection"]
INDEX = {
    "_class_name": "StableDiffusion3Pipeline", "_diffusers_version": "0.29.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
}
ABSENT = {key: [None, None] for key in ("feature_extractor", "image_encoder", "text_encoder_3", "tokenizer_3")}
# stable-diffusion-3-medium's scheduler_config.json: options that came later are missing
MEDIUM_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.29.0.dev0", "num_train_timesteps": 1000,
    "shift": 3.0,
}


def clip(folder: Path, n: str, published: bool, **options) -> None:
    tokenizer = text.clip_tokenizer(folder / f"tokenizer{n}", published, pad="!" if n else "<|endoftext|>")
    text.clip_encoder(tokenizer, folder / f"text_encoder{n}", published, **options)


def build(name: str, medium: bool) -> Path:
    """`medium`: as version 3's, otherwise as version 3.5's."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(3 if medium else 4)
    # both CLIPs side by side are narrower than the joint width, and their pooled vectors as wide as the transformer
    # wants them; nothing else is equal
    if medium:
        clip(folder, "", True, layers=2, width=16, heads=2, projection=12)
        clip(folder, "_2", True, layers=3, width=24, heads=3, act="gelu", projection=20)
        tokenizer = text.t5_tokenizer(folder / "tokenizer_3", True)
        text.t5_encoder(tokenizer, folder / "text_encoder_3", True, layers=2, width=48)
        sizes = {"attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 48,
                 "caption_projection_dim": 32, "pooled_projection_dim": 32, "sample_size": 16, "pos_embed_max_size": 24}
    else:
        clip(folder, "", False, layers=3, width=20, heads=4, projection=28)
        clip(folder, "_2", False, layers=2, width=32, heads=4, act="gelu", projection=16)
        # a grid that is no multiple of the size in training: positions are not round numbers
        sizes = {"attention_head_dim": 12, "num_attention_heads": 2, "joint_attention_dim": 56,
                 "caption_projection_dim": 24, "pooled_projection_dim": 44, "sample_size": 24, "pos_embed_max_size": 20,
                 "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
    transformer = randomise(SD3Transformer2DModel(num_layers=3, in_channels=16, out_channels=16, **sizes))
    transformer.save_pretrained(folder / "transformer", max_shard_size="250KB" if medium else "10GB")
    vae.build(folder / "vae", (8, 8, 8, 12) if medium else (8, 8, 12, 12), layers=1, scaling_factor=1.5305,
              shift_factor=0.0609)
    if medium:
        (folder / "scheduler").mkdir()
        text.write_json(folder / "scheduler/scheduler_config.json", MEDIUM_SCHEDULER)
    else:
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    text.write_json(folder / "model_index.json", {**INDEX, **({} if medium else ABSENT)})
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)
    return folder


def transformer_goldens(folder: Path) -> dict[str, torch.Tensor]:
    """A batch of two, a picture of 5 x 3 tokens, 9 text tokens."""
    transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer").eval()
    config = transformer.config
    inputs = {
        "hidden_states": torch.randn(2, 16, 10, 6), "encoder_hidden_states": torch.randn(2, 9, config.joint_attention_dim),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim),
        # as the scheduler has it: Flux divides by 1000, this does not
        "timestep": torch.tensor([700.0, 700.0]),
    }
    parts: dict[str, torch.Tensor] = {}
    hook(parts, "temb", transformer.time_text_embed)
    hook(parts, "img", transformer.pos_embed)
    hook(parts, "txt", transformer.context_embedder)
    for i, block in enumerate(transformer.transformer_blocks):
        hook(parts, f"block.{i}", block)
    hook(parts, "norm_out", transformer.norm_out)
    hook(parts, "proj_out", transformer.proj_out)
    parts["out"] = transformer(**inputs, return_dict=False)[0]
    parts["pos"] = transformer.pos_embed.cropped_pos_embed(10, 6)
    out = under("transformer", {**inputs, **parts})
    # the hooks have written to `parts` up to here
    out["transformer.out_without_block_1"] = transformer(**inputs, skip_layers=[1], return_dict=False)[0]

    # the embedding of times as they occur
    time = {
        "timestep": torch.tensor([1000.0, 993.7, 912.3, 750.0, 333.25, 17.5, 1.0, 0.0]),
        "pooled": torch.randn(8, config.pooled_projection_dim),
    }
    embed = transformer.time_text_embed
    time["sinusoid"] = embed.time_proj(time["timestep"])
    time["embedded"] = embed.timestep_embedder(time["sinusoid"])
    time["temb"] = embed(time["timestep"], time["pooled"])
    out |= under("time", time)

    # cuts out of the middle: of odd and even sizes, and all of it in one direction
    size = config.pos_embed_max_size
    for h, w in ((1, 1), (4, 7), (size - 1, 2), (3, size)):
        out[f"pos.{h}x{w}"] = transformer.pos_embed.cropped_pos_embed(2 * h, 2 * w)
    return out


COMMON = {"height": 32, "width": 48, "num_inference_steps": 3, "max_sequence_length": 32, "guidance_scale": 5.0}
EMBEDDED = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def cases(medium: bool) -> dict[str, dict]:
    out = {
        # upstream ignores a negative prompt at a scale of 1
        "no_cfg": {"prompt": PROMPTS["plain"], "negative_prompt": "a blue dog", "guidance_scale": 1.0},
        # the negative prompt is then an empty one
        "default": {"prompt": PROMPTS["upper"], "height": 80},
        "negative": {"prompt": PROMPTS["cjk"], "negative_prompt": "a blue dog!", "guidance_scale": 2.5, "width": 80,
                     "num_inference_steps": 4, "seed": 2**32 + 3},
        # 77 tokens of CLIP, 32 of T5
        "long": {"prompt": PROMPTS["long"], "seed": 7},
        "short": {"prompt": PROMPTS["numbers"], "max_sequence_length": 11, "seed": 1},
        "one_step": {"prompt": PROMPTS["accents"], "num_inference_steps": 1},
    }
    if not medium:
        # of 5 steps, 0 and 4 have no skipped layer
        out["skip"] = {
            "prompt": PROMPTS["punctuation"], "num_inference_steps": 5, "skip_guidance_layers": [1],
            "skip_layer_guidance_scale": 2.8, "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.8}
    return out


@torch.no_grad()
def make(name: str, medium: bool) -> None:
    folder = build(name, medium)
    # that a component is null in model_index.json is not enough for upstream
    absent = {} if medium else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    # before the text's goldens, whose hooks stay
    out = pipelines.goldens(pipe, name, COMMON, cases(medium), EMBEDDED)
    out |= transformer_goldens(folder) | vae.goldens(folder / "vae", (3, 5), tiled=None)
    out |= text.clip_goldens("clip", pipe.tokenizer, pipe.text_encoder)
    out |= text.clip_goldens("clip_2", pipe.tokenizer_2, pipe.text_encoder_2)
    if medium:
        out |= text.t5_goldens(pipe.tokenizer_3, pipe.text_encoder_3)
    save(out, name)


if __name__ == "__main__":
    common.deterministic()
    make("sd3", medium=True)
    make("sd35", medium=False)
