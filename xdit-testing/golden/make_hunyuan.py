"""Two tiny HunyuanDiT pipelines with random weights, and what every part of them puts out in diffusers.

    pip install -r xdit-testing/golden/requirements.txt
    python xdit-testing/golden/make_hunyuan.py

README.md says how the two differ and what the keys of the golden files mean.
"""

import shutil
from pathlib import Path

import common
import diffusers.schedulers.scheduling_ddpm as ddpm
import text
import torch
import vae
from common import HERE, PROMPTS, hook, randomise, save, under
from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import (
    SUPPORTED_SHAPE, get_resize_crop_region_for_grid, map_to_standard_shapes)

INDEX = {
    "_class_name": "HunyuanDiTPipeline", "_diffusers_version": "0.29.0.dev0",
    "feature_extractor": [None, None], "requires_safety_checker": True, "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "BertModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "BertTokenizer"], "tokenizer_2": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "HunyuanDiT2DModel"], "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.29.0.dev0", "beta_end": 0.03,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995, "num_train_timesteps": 1000, "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": False, "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "thresholding": False, "timestep_spacing": "leading", "trained_betas": None,
    "variance_type": "fixed_small",
}
ALL = {
    **PROMPTS,
    "chinese": "一个宇航员在骑马",
    "mixed": "请将“杞人忧天”的样子画出来, in the STYLE of a café poster",
    # tokens that mean something to BERT or to mT5
    "tokens": "a [MASK] cat [SEP][PAD] [cls] <extra_id_0> ▁<extra_id_1> <0x41>",
    # BERT gives up on words of more than 100 letters, and drops control characters
    "words": "at" + "tion" * 24 + "ly" + " at" + "tion" * 24 + "ing a\u0000b\u200bc\ufffd d\u0007e",
    "hangul": "고양이 ñandú Ελλάδα ǅ ﷺ",
}
# all but the last leave most of 256 tokens empty
T5_PROMPTS = ["plain", "chinese", "empty", "long"]
MAX_LENGTH, MAX_LENGTH_2 = 77, 256


def build(name: str, v11: bool) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(3 if v11 else 4)
    text.build_bert_mt5(folder, published=v11, layers=2 if v11 else 3)
    transformer = randomise(HunyuanDiT2DModel(
        # upstream takes even numbers of layers alone: for odd ones it keeps fewer outputs than its skips take
        num_layers=4 if v11 else 6, num_attention_heads=3 if v11 else 2, attention_head_dim=8 if v11 else 16,
        hidden_size=24 if v11 else 32, in_channels=4, patch_size=2, sample_size=128, mlp_ratio=4.3637,
        cross_attention_dim=24 if v11 else 32, cross_attention_dim_t5=24, pooled_projection_dim=12 if v11 else 20,
        text_len=MAX_LENGTH, text_len_t5=MAX_LENGTH_2, use_style_cond_and_image_meta_size=v11))
    transformer.save_pretrained(folder / "transformer", max_shard_size="10GB" if v11 else "300KB")
    vae.build(folder / "vae", (8, 8, 8, 12) if v11 else (4, 8, 12, 12), layers=1, latent_channels=4,
              scaling_factor=0.13025, shift_factor=None, quant=True)
    (folder / "scheduler").mkdir()
    text.write_json(folder / "scheduler/scheduler_config.json", {**SCHEDULER, "beta_end": 0.03 if v11 else 0.018})
    text.write_json(folder / "model_index.json", INDEX)
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)
    return folder


def rotary(head_dim: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As the pipeline computes it for a grid of tokens; the base size is that of 512 pixels."""
    crop = get_resize_crop_region_for_grid((rows, columns), 512 // 8 // 2)
    return get_2d_rotary_pos_embed(head_dim, crop, (rows, columns), device="cpu", output_type="pt")


def transformer_goldens(folder: Path, v11: bool) -> dict[str, torch.Tensor]:
    """A batch of two, a picture of 5 x 3 tokens. The texts end at different tokens, and one has a gap."""
    transformer = HunyuanDiT2DModel.from_pretrained(folder / "transformer").eval()
    config = transformer.config
    masks = torch.zeros(2, MAX_LENGTH, dtype=torch.int64), torch.zeros(2, MAX_LENGTH_2, dtype=torch.int64)
    for mask, seen in zip(masks, ((9, 77), (256, 21))):
        for row, n in zip(mask, seen):
            row[:n] = 1
    masks[0][1, 30:40] = 0
    inputs = {
        "hidden_states": torch.randn(2, 4, 10, 6), "timestep": torch.tensor([681.0, 681.0]),
        "encoder_hidden_states": torch.randn(2, MAX_LENGTH, config.cross_attention_dim),
        "text_embedding_mask": masks[0],
        "encoder_hidden_states_t5": torch.randn(2, MAX_LENGTH_2, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": masks[1],
        "image_meta_size": torch.tensor([[1024.0, 1024.0, 80.0, 48.0, 0.0, 0.0]] * 2),
        "style": torch.zeros(2, dtype=torch.int64),
    }
    parts: dict[str, torch.Tensor] = {}
    parts["rope.cos"], parts["rope.sin"] = rope = rotary(config.attention_head_dim, 5, 3)
    hook(parts, "img", transformer.pos_embed)
    hook(parts, "pool", transformer.time_extra_emb.pooler)
    hook(parts, "temb", transformer.time_extra_emb)

    def keep(_module, _args, kwargs):
        parts["txt"] = kwargs["encoder_hidden_states"].clone()

    transformer.blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
    for i, block in enumerate(transformer.blocks):
        hook(parts, f"block.{i}", block)
    # the halves of a block's output, where a swapped pair of its three norms would show first
    for i in (0, config.num_layers - 1):
        hook(parts, f"block.{i}.attn1", transformer.blocks[i].attn1)
        hook(parts, f"block.{i}.attn2", transformer.blocks[i].attn2)
    hook(parts, "norm_out", transformer.norm_out)
    parts["out"] = transformer(**inputs, image_rotary_emb=rope, return_dict=False)[0]
    out = under("transformer", {**inputs, **parts})

    # the embedding of other times, and of sizes where they are embedded
    embed = transformer.time_extra_emb
    sines: dict[str, torch.Tensor] = {}
    hook(sines, "sizes", embed.size_proj)
    hook(sines, "embedded", embed.timestep_embedder)
    time = {"timestep": torch.tensor([981.0, 961.0, 667.0, 334.0, 21.0, 1.0])}
    time["image_meta_size"] = torch.tensor([[1024, 1024, 768, 1280, 0, 0], [2048, 512, 96, 64, 3, 700]] * 3).float()
    time["sinusoid"] = embed.time_proj(time["timestep"])
    time["temb"] = embed(
        time["timestep"], inputs["encoder_hidden_states_t5"][:1].expand(6, -1, -1), time["image_meta_size"],
        torch.zeros(6, dtype=torch.int64), torch.float32)
    if v11:
        sines["sizes"] = sines["sizes"][:12]
    return out | under("time", {**time, **sines})


def schedule_goldens(scheduler: DDPMScheduler) -> dict[str, torch.Tensor]:
    out = {"schedule.alphas_cumprod": scheduler.alphas_cumprod}
    for steps in (1, 3, 4, 7, 25, 50, 100, 1000):
        scheduler.set_timesteps(steps)
        out[f"schedule.{steps}.timesteps"] = scheduler.timesteps
    scheduler.set_timesteps(4)
    out["step.start"] = x = torch.randn(1, 4, 6, 10)
    generator = torch.Generator("cpu").manual_seed(5)
    for i, t in enumerate(scheduler.timesteps):
        prediction = torch.randn(1, 4, 6, 10)
        with draws(out, f"step.{i}.draw"):
            x, original = scheduler.step(prediction, t, x, generator=generator, return_dict=False)
        out |= under(f"step.{i}", {"prediction": prediction, "original": original, "out": x})
    return out


class draws:
    """Keeps the noise that the scheduler draws: the only draw at `key`, or all at `key.<i>`."""

    def __init__(self, out: dict, key: str, every: bool = False):
        self.out, self.key, self.n = out, key, 0 if every else None

    def __enter__(self):
        self.upstream = ddpm.randn_tensor

        def keep(*args, **kwargs):
            noise = self.upstream(*args, **kwargs)
            self.out[self.key if self.n is None else f"{self.key}.{self.n}"] = noise.clone()
            self.n = None if self.n is None else self.n + 1
            return noise

        ddpm.randn_tensor = keep

    def __exit__(self, *_):
        ddpm.randn_tensor = self.upstream


COMMON = {"height": 32, "width": 48, "num_inference_steps": 3, "guidance_scale": 5.0, "use_resolution_binning": False}


def pipeline_goldens(pipe: HunyuanDiTPipeline, name: str) -> dict[str, torch.Tensor]:
    """One prompt, one picture."""
    cases = {
        "default": {"prompt": PROMPTS["plain"], "guidance_scale": 1.0},
        # the empty text instead of a negative prompt
        "cfg": {"prompt": ALL["chinese"], "height": 48, "width": 32},
        "negative": {"prompt": ALL["mixed"], "negative_prompt": "a blue dog, 雾", "height": 32, "width": 64,
                     "num_inference_steps": 4, "guidance_rescale": 0.7, "seed": 2**32 + 3},
        "long": {"prompt": PROMPTS["long"], "seed": 7},
        # sides that are no multiple of 16 lose the rest, and upstream ignores a negative prompt at a scale of 1
        "floor": {"prompt": PROMPTS["accents"], "negative_prompt": "a blue dog", "guidance_scale": 1.0, "height": 47,
                  "width": 63, "seed": 1},
        # the sizes that 1.1 embeds
        "sizes": {"prompt": PROMPTS["cjk"], "original_size": (768, 512), "target_size": (640, 320),
                  "crops_coords_top_left": (16, 24), "seed": 0},
    }
    out: dict[str, torch.Tensor] = {}
    for key, case in cases.items():
        cases[key] = case = {**COMMON, "seed": 42, **case}
        arguments = {k: v for k, v in case.items() if k != "seed"}
        parts: dict[str, torch.Tensor] = {}

        def keep(_pipe, i, _t, kept, parts=parts):
            parts[f"step.{i}"] = kept["latents"].clone()
            return kept

        for kind in ("latent", "pt", "pil"):
            generator = torch.Generator("cpu").manual_seed(case["seed"])
            with draws(parts, "draw", every=True):
                images = pipe(**arguments, generator=generator, output_type=kind, callback_on_step_end=keep).images
            if kind == "pil":
                width, height = images[0].size
                images = torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8)
                images = images.reshape(1, height, width, 3)
            parts[kind if kind != "pil" else "u8"] = images
        generator = torch.Generator("cpu").manual_seed(case["seed"])
        parts["noise"] = pipe.prepare_latents(1, 4, height, width, torch.float32, "cpu", generator)
        if key == "negative":
            for i, (kind, length) in enumerate({"bert": MAX_LENGTH, "t5": MAX_LENGTH_2}.items()):
                txt, negative, mask, negative_mask = pipe.encode_prompt(
                    case["prompt"], negative_prompt=case["negative_prompt"], max_sequence_length=length,
                    text_encoder_index=i)
                parts |= {f"txt.{kind}": txt, f"mask.{kind}": mask.bool(), f"negative.txt.{kind}": negative,
                          f"negative.mask.{kind}": negative_mask.bool()}
        out |= under(f"pipeline.{key}", parts)
    text.write_json(HERE / f"{name}.cases.json", cases)
    return out


def batch_goldens(pipe: HunyuanDiTPipeline, name: str) -> dict[str, torch.Tensor]:
    """Several pictures in one call. One seed: one generator draws them all, in every step. Several: each draws its own.

    Several prompts with several pictures each are not among them: upstream repeats states prompt by prompt, and masks
    the other way round, so that pictures get another prompt's mask.
    """
    two = [PROMPTS["plain"], ALL["chinese"]]
    cases = {
        "images": {"prompts": two[1:], "num_images_per_prompt": 2, "seeds": [42]},
        "prompts": {"prompts": two, "num_images_per_prompt": 1, "seeds": [42], "guidance_scale": 1.0},
        "generators": {"prompts": two, "num_images_per_prompt": 1, "seeds": [3, 2**32 + 5]},
        "cfg": {"prompts": two, "negative_prompts": ["a blue dog", "雾"], "guidance_rescale": 0.5,
                "num_images_per_prompt": 1, "seeds": [0, 1]},
    }
    out: dict[str, torch.Tensor] = {}
    for key, case in cases.items():
        cases[key] = case = {**COMMON, "height": 32, "width": 32, **case}
        renamed = {"prompts": "prompt", "negative_prompts": "negative_prompt"}
        arguments = {renamed.get(k, k): v for k, v in case.items() if k != "seeds"}
        for kind in ("latent", "pt"):
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]]
            generator = generators if len(generators) > 1 else generators[0]
            out[f"batch.{key}.{kind}"] = pipe(**arguments, generator=generator, output_type=kind).images
    text.write_json(HERE / f"{name}.batches.json", cases)
    return out


def standard_size(height: int, width: int) -> tuple[int, int]:
    """What `use_resolution_binning` makes of a size."""
    height, width = height // 16 * 16, width // 16 * 16
    if (height, width) not in SUPPORTED_SHAPE:
        width, height = map_to_standard_shapes(width, height)
    return height, width


def standard_sizes() -> list[dict]:
    """Height x width; ratios between two standard ones, areas between two, and sides that are no multiple of 16."""
    asked = [(1024, 1024), (1280, 1280), (768, 1280), (1280, 768), (960, 1280), (1152, 864), (864, 1152), (512, 512),
             (1100, 1100), (1152, 1152), (1160, 1160), (1168, 1168), (2048, 2048), (720, 1280), (1080, 1920),
             (1920, 1080), (1000, 1500), (1023, 1039), (832, 1216), (1216, 832), (256, 1024), (1024, 256), (16, 16),
             (896, 1024), (1024, 896), (1024, 880), (640, 1024), (1024, 640), (768, 1024), (1050, 800), (2000, 1600)]
    return [{"asked": "{}x{}".format(*size), "got": "{}x{}".format(*standard_size(*size))} for size in asked]


def shared_goldens() -> dict[str, torch.Tensor]:
    """What is alike in both folders: rotary tables of real heads, some rows of each, and BERT's tokens."""
    out = text.bert_variants(ALL)
    grids = [(rows, columns) for rows in range(1, 9) for columns in range(1, 9)]
    grids += [(height // 16, width // 16) for height, width in SUPPORTED_SHAPE]
    grids += [(32, 32), (64, 63), (33, 57), (57, 33), (100, 7), (7, 100), (128, 128), (67, 120)]
    out["crop.grid"] = torch.tensor(grids)
    out["crop.region"] = torch.tensor([get_resize_crop_region_for_grid(grid, 32) for grid in grids]).flatten(1)
    for rows, columns in ((64, 64), (80, 80), (48, 80), (80, 48), (72, 54), (32, 32), (33, 57), (5, 3), (1, 7)):
        cos, sin = rotary(88, rows, columns)
        n = rows * columns
        at = torch.arange(0, n, max(1, n // 29))
        out |= under(f"rope.{rows}x{columns}", {"rows": at, "cos": cos[at], "sin": sin[at]})
    return out


@torch.no_grad()
def make(name: str, v11: bool) -> None:
    folder = build(name, v11)
    pipe = HunyuanDiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    kinds = {
        "bert": (pipe.tokenizer, pipe.text_encoder, MAX_LENGTH, list(ALL)),
        "t5": (pipe.tokenizer_2, pipe.text_encoder_2, MAX_LENGTH_2, T5_PROMPTS),
    }
    text.write_json(HERE / f"{name}.cut.json", {
        "bert": text.cut_off(pipe.tokenizer, ALL, MAX_LENGTH), "t5": text.cut_off(pipe.tokenizer_2, ALL, MAX_LENGTH_2)})
    save({
        **text.masked_goldens(pipe, kinds, ALL, detailed=["chinese"]), **transformer_goldens(folder, v11),
        **schedule_goldens(pipe.scheduler), **vae.goldens(folder / "vae", (4, 6), (6, 10)), **pipeline_goldens(pipe, name),
        **batch_goldens(pipe, name),
    }, name)


if __name__ == "__main__":
    common.deterministic()
    make("hunyuan-v11", v11=True)
    make("hunyuan-v12", v11=False)
    save(shared_goldens(), "hunyuan")
    text.write_json(HERE / "hunyuan.sizes.json", standard_sizes())
    text.write_json(HERE / "hunyuan.prompts.json", ALL)
