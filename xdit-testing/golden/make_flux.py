"""Two tiny Flux pipelines with random weights, and what every part of them puts out in diffusers.

    pip install -r xdit-testing/golden/requirements.txt
    python xdit-testing/golden/make_flux.py

README.md says how the two differ and what the keys of the golden files mean.
"""

import shutil
from pathlib import Path

import common
import schedules
import text
import torch
import vae
from common import HERE, PROMPTS, hook, randomise, save, under
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

INDEX = {
    "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
}
# FLUX.1-dev's scheduler_config.json: options that came later are missing
DEV_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0", "base_image_seq_len": 256,
    "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0,
    "use_dynamic_shifting": True,
}


def build(name: str, dev: bool) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(1 if dev else 2)
    text.build(folder, published=dev, layers=2 if dev else 3)
    transformer = randomise(FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2 if dev else 3, attention_head_dim=16 if dev else 24,
        num_attention_heads=4 if dev else 3, joint_attention_dim=40, pooled_projection_dim=32, guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6) if dev else (4, 8, 12)))
    transformer.save_pretrained(folder / "transformer", max_shard_size="700KB" if dev else "10GB")
    vae.build(folder / "vae", (8, 8, 16, 16) if dev else (8, 12, 16, 20), layers=1 if dev else 2)
    if dev:
        (folder / "scheduler").mkdir()
        text.write_json(folder / "scheduler/scheduler_config.json", DEV_SCHEDULER)
    else:
        FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=False, shift=1.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
            max_image_seq_len=4096).save_pretrained(folder / "scheduler")
    none = {} if dev else {"feature_extractor": [None, None], "image_encoder": [None, None]}
    text.write_json(folder / "model_index.json", {**INDEX, **none})
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)
    return folder


def transformer_goldens(folder: Path, dev: bool) -> dict[str, torch.Tensor]:
    """A batch of two, a picture of 5 x 3 tokens, 9 text tokens."""
    transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer").eval()
    inputs = {
        "hidden_states": torch.randn(2, 15, 64), "encoder_hidden_states": torch.randn(2, 9, 40),
        "pooled_projections": torch.randn(2, 32),
        # the pipeline divides the scheduler's 700 by 1000, and the transformer multiplies by 1000, both in f32
        "timestep": torch.tensor([700.0, 700.0]) / 1000,
        "img_ids": FluxPipeline._prepare_latent_image_ids(2, 5, 3, "cpu", torch.float32),
        "txt_ids": torch.zeros(9, 3),
    }
    if dev:
        inputs["guidance"] = torch.tensor([3.5, 3.5])
    parts: dict[str, torch.Tensor] = {}
    hook(parts, "temb", transformer.time_text_embed)
    hook(parts, "img", transformer.x_embedder)
    hook(parts, "txt", transformer.context_embedder)
    hook(parts, "rope", transformer.pos_embed)
    for i, block in enumerate([*transformer.transformer_blocks, *transformer.single_transformer_blocks]):
        hook(parts, f"block.{i}", block)
    hook(parts, "norm_out", transformer.norm_out)
    parts["out"] = transformer(**inputs, return_dict=False)[0]
    out = under("transformer", {**inputs, **parts})

    # the embedding of times as they occur, with f32's rounding of t / 1000 * 1000
    time = {
        "timestep": torch.tensor([1000.0, 993.7, 912.3, 750.0, 333.25, 17.5, 1.0, 0.0]) / 1000,
        "guidance": torch.tensor([3.5, 0.0, 1.0, 2.25, 7.0, 10.0, 30.0, 3.5]), "pooled": torch.randn(8, 32),
    }
    if not dev:
        del time["guidance"]
    embed = transformer.time_text_embed
    sines: dict[str, torch.Tensor] = {}
    hook(sines, "", embed.timestep_embedder)
    values = [time["timestep"] * 1000] + ([time["guidance"] * 1000] if dev else [])
    time["sinusoid"] = embed.time_proj(values[0])
    time["temb"] = embed(*values, time["pooled"])
    time["embedded"] = sines[""]
    out |= under("time", time)

    # rotary angles far from the origin, where f32 would not do
    ids = torch.tensor([[0, 0, 0], [1, 2, 3], [0, 63, 127], [0, 255, 511], [7, 1023, 2047], [0, 4095, 1]]).float()
    cos, sin = transformer.pos_embed(ids)
    return out | {"rope.ids": ids, "rope.cos": cos, "rope.sin": sin}


COMMON = {"height": 96, "width": 64, "num_inference_steps": 3, "max_sequence_length": 32, "guidance_scale": 3.5}


def pipeline_goldens(pipe: FluxPipeline, name: str, dev: bool) -> dict[str, torch.Tensor]:
    """One prompt, one picture."""
    small = {"height": 32, "width": 48}
    cases = {
        "default": {"prompt": PROMPTS["plain"]},
        "long": {"prompt": PROMPTS["long"], "seed": 7},
        "cfg": {"prompt": PROMPTS["upper"], "negative_prompt": "a blue dog", "true_cfg_scale": 2.5},
        "wide": {"prompt": PROMPTS["cjk"], "height": 32, "width": 112, "num_inference_steps": 4, "seed": 2**32 + 3},
        # dev embeds it, schnell ignores it
        "guidance": {"prompt": PROMPTS["plain"], "guidance_scale": 7.0 if dev else 0.0},
        "one_step": {"prompt": PROMPTS["accents"], **small, "num_inference_steps": 1, "seed": 1},
        # upstream ignores a negative prompt at a scale of 1
        "no_cfg": {"prompt": PROMPTS["plain"], "negative_prompt": "a blue dog", "true_cfg_scale": 1.0, **small},
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
            images = pipe(**arguments, generator=generator, output_type=kind, callback_on_step_end=keep).images
            if kind == "pil":
                images = torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8)
                images = images.reshape(1, case["height"], case["width"], 3)
            parts[kind if kind != "pil" else "u8"] = images
        if key not in ("default", "cfg"):
            parts = {k: parts[k] for k in ("latent", "pt")}
        else:
            generator = torch.Generator("cpu").manual_seed(case["seed"])
            parts["noise"] = pipe.prepare_latents(
                1, 16, case["height"], case["width"], torch.float32, "cpu", generator)[0]
            parts["txt"], parts["pooled"], _ = pipe.encode_prompt(case["prompt"], max_sequence_length=32)
        out |= under(f"pipeline.{key}", parts)
    text.write_json(HERE / f"{name}.cases.json", cases)
    return out


def batch_goldens(pipe: FluxPipeline, name: str) -> dict[str, torch.Tensor]:
    """Several pictures in one call. One seed: one generator draws them all. Several: each draws its own."""
    two = [PROMPTS["plain"], PROMPTS["accents"]]
    cases = {
        "images": {"prompts": two[:1], "num_images_per_prompt": 2, "seeds": [42]},
        "prompts": {"prompts": two, "num_images_per_prompt": 1, "seeds": [42]},
        "generators": {"prompts": two, "num_images_per_prompt": 1, "seeds": [3, 2**32 + 5]},
        "cfg": {"prompts": two, "negative_prompts": ["a blue dog", "rain"], "true_cfg_scale": 2.5,
                "num_images_per_prompt": 2, "seeds": [0, 1, 2, 3]},
    }
    out: dict[str, torch.Tensor] = {}
    for key, case in cases.items():
        cases[key] = case = {**COMMON, "height": 32, "width": 48, **case}
        renamed = {"prompts": "prompt", "negative_prompts": "negative_prompt"}
        arguments = {renamed.get(k, k): v for k, v in case.items() if k != "seeds"}
        for kind in ("latent", "pt"):
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]]
            generator = generators if len(generators) > 1 else generators[0]
            out[f"batch.{key}.{kind}"] = pipe(**arguments, generator=generator, output_type=kind).images
    text.write_json(HERE / f"{name}.batches.json", cases)
    return out


@torch.no_grad()
def make(name: str, dev: bool) -> None:
    folder = build(name, dev)
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    save({
        **text.goldens(pipe), **transformer_goldens(folder, dev), **schedules.goldens(pipe.scheduler.config),
        **vae.goldens(folder / "vae"), **pipeline_goldens(pipe, name, dev), **batch_goldens(pipe, name),
    }, name)


if __name__ == "__main__":
    common.deterministic()
    make("flux-dev", dev=True)
    make("flux-schnell", dev=False)
    text.write_json(HERE / "prompts.json", PROMPTS)
