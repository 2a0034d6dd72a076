"""Three tiny PixArt pipelines with random weights, and what every part of them puts out in diffusers.

    pip install -r xdit-testing/golden/requirements.txt
    python xdit-testing/golden/make_pixart.py

README.md says how they differ and what the keys of the golden files mean.
"""

import json
import shutil
from pathlib import Path

import common
import pipelines
import text
import torch
import vae
from common import HERE, PROMPTS, hook, randomise, save, under
from diffusers import (
    DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel)
from diffusers.image_processor import PixArtImageProcessor
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as bins
from safetensors.torch import load, save_file

INDEX = {
    "_class_name": "PixArtAlphaPipeline", "_diffusers_version": "0.22.0.dev0",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# PixArt-XL-2-1024-MS's scheduler_config.json: options that came later are missing, and a number is not JSON's
ALPHA_SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.22.0.dev0", "algorithm_type": "dpmsolver++",
    "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False, "lambda_min_clipped": float("-inf"), "lower_order_final": True,
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "solver_order": 2,
    "solver_type": "midpoint", "steps_offset": 0, "thresholding": False, "timestep_spacing": "linspace",
    "trained_betas": None, "use_karras_sigmas": False, "use_lu_lambdas": False, "variance_type": None,
}
# the size of the 1024 model turns on what it is told about the picture, and twice the interpolation
ALPHA = {"attention_head_dim": 12, "num_attention_heads": 3, "cross_attention_dim": 36, "caption_channels": 40,
         "sample_size": 128, "num_layers": 3}
# the same size, and nothing is told
SIGMA = {"attention_head_dim": 20, "num_attention_heads": 2, "cross_attention_dim": 40, "caption_channels": 44,
         "sample_size": 128, "num_layers": 3, "interpolation_scale": 2, "use_additional_conditions": False}
# the 256 model: pictures whose size is a small one's of upstream's list, and a scale that is no whole number
SIGMA_256 = {"attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16, "caption_channels": 24,
             "sample_size": 32, "num_layers": 1, "interpolation_scale": 0.5, "use_additional_conditions": False}


def as_published(folder: Path) -> None:
    """Older diffusers' files: the class has another name, options are missing, others are there that have gone, and the
    decoder's attention has the names of stable diffusion's first."""
    path = folder / "transformer/config.json"
    config = json.loads(path.read_text())
    del config["interpolation_scale"], config["use_additional_conditions"]
    text.write_json(path, {
        **config, "_class_name": "Transformer2DModel", "_diffusers_version": "0.22.0.dev0",
        "double_self_attention": False, "num_vector_embeds": None, "only_cross_attention": False,
        "use_linear_projection": False})
    path = folder / "vae/config.json"
    config = json.loads(path.read_text())
    later = ("latents_mean", "latents_std", "mid_block_add_attention", "shift_factor", "use_post_quant_conv",
             "use_quant_conv")
    text.write_json(path, {key: value for key, value in config.items() if key not in later})
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load(path.read_bytes())
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        weights = {name.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): x for name, x in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})


def build(name: str, options: dict) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    alpha = options is ALPHA
    torch.manual_seed({"pixart-alpha": 5, "pixart-sigma": 6, "pixart-256": 7}[name])
    tokenizer = text.t5_tokenizer(folder / "tokenizer", True)
    text.t5_encoder(tokenizer, folder / "text_encoder", alpha, layers=1 if options is SIGMA_256 else 2,
                    width=options["caption_channels"])
    transformer = randomise(PixArtTransformer2DModel(in_channels=4, out_channels=8, **options))
    transformer.save_pretrained(folder / "transformer", max_shard_size="300KB" if alpha else "10GB")
    vae.build(folder / "vae", (8, 8, 8, 12) if alpha else (8, 8, 12, 8), layers=1, latent_channels=4,
              scaling_factor=0.18215 if alpha else 0.13025, shift_factor=None, quant=True)
    if alpha:
        as_published(folder)
        (folder / "scheduler").mkdir()
        text.write_json(folder / "scheduler/scheduler_config.json", ALPHA_SCHEDULER)
        text.write_json(folder / "model_index.json", INDEX)
    else:
        DPMSolverMultistepScheduler.from_config(ALPHA_SCHEDULER).save_pretrained(folder / "scheduler")
        text.write_json(folder / "model_index.json", {
            **INDEX, "_class_name": "PixArtSigmaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]})
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)
    return folder


def transformer_goldens(transformer: PixArtTransformer2DModel) -> dict[str, torch.Tensor]:
    """A batch of two, a picture of 5 x 3 tokens, 9 text tokens of which 6 and 4 are seen."""
    added = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:
        # height first, and height over width
        added = {"resolution": torch.tensor([[80.0, 48.0]] * 2), "aspect_ratio": torch.tensor([[80 / 48]] * 2)}
    inputs = {
        "hidden_states": torch.randn(2, 4, 10, 6),
        "encoder_hidden_states": torch.randn(2, 9, transformer.config.caption_channels),
        "encoder_attention_mask": torch.tensor([[1] * 6 + [0] * 3, [1] * 4 + [0] * 5]),
        # the scheduler's are whole numbers
        "timestep": torch.tensor([700, 700]),
    }
    parts: dict[str, torch.Tensor] = {}
    # six vectors for all blocks, and what they are made from
    hook(parts, "temb", transformer.adaln_single)
    hook(parts, "img", transformer.pos_embed)
    hook(parts, "txt", transformer.caption_projection)
    for i, block in enumerate(transformer.transformer_blocks):
        hook(parts, f"block.{i}", block)
    # the norm itself knows no shift and scale: what the last projection is given
    transformer.proj_out.register_forward_pre_hook(lambda _module, args: parts.update(norm_out=args[0].clone()))
    hook(parts, "proj_out", transformer.proj_out)
    parts["out"] = transformer(**inputs, added_cond_kwargs=added, return_dict=False)[0]

    # the layer has no method for what it adds, and this is how it calls for it
    embed = transformer.pos_embed

    def positions(h: int, w: int) -> torch.Tensor:
        return get_2d_sincos_pos_embed(
            transformer.inner_dim, (h, w), base_size=embed.base_size, interpolation_scale=embed.interpolation_scale,
        ).float()[None]

    parts["pos"] = positions(5, 3)
    assert torch.equal(parts["img"], embed.proj(inputs["hidden_states"]).flatten(2).transpose(1, 2) + parts["pos"])
    out = under("transformer", {**inputs, **{k: x for k, x in added.items() if x is not None}, **parts})
    # in one direction, the last is what the 1024 model was trained with
    for h, w in ((1, 1), (4, 7), (64, 2)):
        out[f"pos.{h}x{w}"] = positions(h, w)

    # the embedding of times and sizes as they occur
    time = {"timestep": torch.tensor([999, 987, 749, 666, 333, 250, 17, 0])}
    sizes = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:
        sizes["resolution"] = torch.tensor(
            [[1024, 1024], [512, 2048], [2048, 512], [96, 64], [32, 112], [832, 1216], [704, 1344], [1728, 576]]).float()
        sizes["aspect_ratio"] = (sizes["resolution"][:, 0] / sizes["resolution"][:, 1])[:, None]
    time["sinusoid"] = transformer.adaln_single.emb.time_proj(time["timestep"])
    time["temb.0"], time["temb.1"] = transformer.adaln_single(
        time["timestep"], sizes, batch_size=8, hidden_dtype=torch.float32)
    time["embedded"] = transformer.adaln_single.emb.timestep_embedder(time["sinusoid"])
    return out | under("time", {**time, **{k: x for k, x in sizes.items() if x is not None}})


def caption_goldens(pipe) -> dict[str, torch.Tensor]:
    """Prompts as the pipeline changes them before it calls its tokenizer: in small letters, without spaces around."""
    out: dict[str, torch.Tensor] = {}
    for name, prompt in PROMPTS.items():
        prompt = pipe._text_preprocessing(prompt, clean_caption=False)
        tokens = pipe.tokenizer(prompt, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
        out[f"caption.{name}.ids"], out[f"caption.{name}.mask"] = tokens.input_ids, tokens.attention_mask
    return out


def bin_goldens() -> dict[str, torch.Tensor]:
    """Which size is made if another is asked for, and how the picture becomes as large as asked."""
    tables = {256: bins.ASPECT_RATIO_256_BIN, 512: bins.ASPECT_RATIO_512_BIN, 1024: bins.ASPECT_RATIO_1024_BIN,
              2048: bins.ASPECT_RATIO_2048_BIN}
    sizes = [(int(h), int(w)) for table in (tables[1024], tables[2048]) for h, w in table.values()]
    # beyond both ends, and in the middle of two: 0.25 and 0.28, 0.26 and 0.28, 2.5 and 3
    sizes += [(64, 96), (50, 77), (8, 4096), (4096, 8), (1000, 1000), (265, 1000), (270, 1000), (2750, 1000)]
    out = {"bins.requested": torch.tensor(sizes)}
    for size, table in tables.items():
        out[f"bins.{size}"] = torch.tensor(
            [PixArtImageProcessor.classify_height_width_bin(h, w, table) for h, w in sizes])
    # smaller, larger, cut in each direction, as it is; and where upstream's rounding leaves one row and column of it:
    # int(26 * (15 / 26)) is 14, and a cut that starts at -1 starts with the last
    for (h, w), (new_h, new_w) in (
        ((26, 38), (8, 12)), ((26, 38), (9, 10)), ((12, 20), (31, 40)), ((10, 10), (10, 10)), ((26, 26), (15, 15))):
        x = torch.randn(1, 2, h, w)
        key = f"resize.{h}x{w}.{new_h}x{new_w}"
        out[f"{key}.in"], out[f"{key}.out"] = x, PixArtImageProcessor.resize_and_crop_tensor(x, new_w, new_h)
    return out


COMMON = {"height": 32, "width": 48, "num_inference_steps": 4, "max_sequence_length": 32, "guidance_scale": 4.5,
          "clean_caption": False, "use_resolution_binning": False}
EMBEDDED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")


def cases(options: dict) -> dict[str, dict]:
    binned = {"use_resolution_binning": True}
    if options is SIGMA_256:
        return {
            # 208 x 304 are made
            "default": {"prompt": PROMPTS["upper"], **binned, "height": 64, "width": 96,
                        "num_inference_steps": 2},
            # not in eights, and cut
            "odd": {"prompt": PROMPTS["plain"], **binned, "height": 50, "width": 77, "guidance_scale": 1.0,
                    "num_inference_steps": 2},
        }
    out = {
        # upstream ignores a negative prompt at a scale of 1
        "no_cfg": {"prompt": PROMPTS["plain"], "negative_prompt": "a blue dog", "guidance_scale": 1.0},
        # the negative prompt is then an empty one
        "default": {"prompt": PROMPTS["upper"], "height": 80},
        "negative": {"prompt": PROMPTS["cjk"], "negative_prompt": " A blue Dog!", "guidance_scale": 2.5, "width": 80,
                     "num_inference_steps": 5, "seed": 2**32 + 3},
        "long": {"prompt": PROMPTS["long"], "seed": 7},
        "short": {"prompt": PROMPTS["numbers"], "max_sequence_length": 11, "seed": 1},
        # from 15 steps on, the last is of first order only because it ends at zero
        "many_steps": {"prompt": PROMPTS["plain"], "num_inference_steps": 16, "guidance_scale": 1.0},
    }
    if options is SIGMA:
        # upstream's Alpha cannot: it wants the second of what this scheduler's step returns, which is one tensor
        out["one_step"] = {"prompt": PROMPTS["accents"], "num_inference_steps": 1}
    return out


def large_goldens(pipe, name: str) -> dict[str, torch.Tensor]:
    """The smallest that a 1024 model makes is too large to keep: every eighth latent in each direction of it."""
    case = {**COMMON, "prompt": PROMPTS["plain"], "height": 64, "width": 96, "num_inference_steps": 2,
            "guidance_scale": 1.0, "use_resolution_binning": True, "seed": 42}
    text.write_json(HERE / f"{name}.large.json", {"binned": case})
    generator = torch.Generator("cpu").manual_seed(case["seed"])
    arguments = {k: v for k, v in case.items() if k != "seed"}
    latent = pipe(**arguments, generator=generator, output_type="latent").images
    return {"large.binned.latent.shape": torch.tensor(latent.shape), "large.binned.latent.8": latent[:, :, ::8, ::8]}


@torch.no_grad()
def make(name: str, options: dict) -> None:
    folder = build(name, options)
    pipe = (PixArtAlphaPipeline if options is ALPHA else PixArtSigmaPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    # before the goldens of its parts, whose hooks stay
    out = pipelines.goldens(pipe, name, COMMON, cases(options), EMBEDDED)
    if options is SIGMA_256:
        out |= bin_goldens()
    else:
        if options is ALPHA:
            out |= large_goldens(pipe, name)
        out |= vae.goldens(folder / "vae", (3, 5), tiled=(10, 9) if options is ALPHA else None) | caption_goldens(pipe)
        out |= text.t5_goldens(pipe.tokenizer, pipe.text_encoder, masked=True)
    save(out | transformer_goldens(pipe.transformer), name)


if __name__ == "__main__":
    common.deterministic()
    make("pixart-alpha", ALPHA)
    make("pixart-sigma", SIGMA)
    make("pixart-256", SIGMA_256)
