"""Configurations that differ from those of the other folders in one thing each: what diffusers draws with them, and what
half precision makes of activations beyond its range.

    pip install -r xdit-testing/golden/requirements.txt
    python xdit-testing/golden/make_configurations.py

A case is one of the folders here with other files and tensors; the test changes the folder in the same way.
"""

import json
import shutil
import tempfile
from pathlib import Path

import common
import torch
from common import HERE, save
from diffusers import DiffusionPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from text import write_json
from transformers import T5EncoderModel

COMMON = {"prompt": "a photo of a red cat", "height": 32, "width": 48, "num_inference_steps": 3, "seed": 42}
GUIDED = {"guidance_scale": 4.5}
PIXART = {**GUIDED, "max_sequence_length": 16, "clean_caption": False, "use_resolution_binning": False}
FLUX = {"guidance_scale": 3.5, "max_sequence_length": 16}
ENCODER = "text_encoder/model.safetensors"


def read(folder: str, file: str) -> dict:
    return json.loads((HERE / folder / file).read_text())


def changed(folder: str, file: str, without: tuple[str, ...] = (), **values) -> dict:
    """A file with other values; `files` of a case."""
    return {file: {**{k: v for k, v in read(folder, file).items() if k not in without}, **values}}


def scheduler(folder: str, without: tuple[str, ...] = (), **values) -> dict:
    # JSON has no infinity; it is this option's default
    return changed(folder, "scheduler/scheduler_config.json", (*without, "lambda_min_clipped"), **values)


def stepped_by(folder: str, name: str) -> dict:
    """Another class in the index than the one that wrote the scheduler's file."""
    return changed(folder, "model_index.json", scheduler=["diffusers", name]) | scheduler(folder)


def whole_clip(folder: str, component: str) -> dict:
    """The text encoder as part of a `CLIPModel`."""
    inner = read(folder, f"{component}/config.json")
    outer = {"architectures": ["CLIPModel"], "model_type": "clip", "text_config": inner, "projection_dim": 99,
             "hidden_size": 99, "vision_config": {"model_type": "clip_vision_model", "hidden_size": 64}}
    norm = "text_model.final_layer_norm.weight"
    tensors = {"vision_model.post_layernorm.weight": [norm, 2.0], "visual_projection.weight": [norm, 3.0],
               "logit_scale": [norm, 4.0]}
    return {"files": {f"{component}/config.json": outer}, "tensors": {f"{component}/model.safetensors": tensors}}


def both(a: dict, b: dict) -> dict:
    return {key: a[key] | b[key] for key in a}


def cases() -> dict[str, dict]:
    t5, t5_file, bert, dit = ("text_encoder_2/config.json", "text_encoder_2/model.safetensors",
                              "text_encoder/config.json", "transformer/config.json")
    ddim, euler = "DDIMScheduler", "EulerDiscreteScheduler"
    mapped = {"hidden_size": 40, "num_attention_heads": 3, "num_hidden_layers": 3, "head_dim": 12}
    return {
        "flux.scheduler_of_another_class": {"files": scheduler("flux-dev", _class_name=euler, beta_start=0.1)},
        "flux.scheduler_without_class": {"files": scheduler(
            "flux-dev", ("_class_name",), invert_sigmas=None, stochastic_sampling=None, use_beta_sigmas=0)},
        "flux.flow_sigmas": {"files": scheduler("flux-dev", use_flow_sigmas=True)},
        "flux.clip_model": whole_clip("flux-dev", "text_encoder"),
        "schnell.clip_act": {"files": changed("flux-schnell", bert, hidden_act="gelu_new")},
        "schnell.two_tables": {"tensors": {t5_file: {"encoder.embed_tokens.weight": ["shared.weight", -0.5]}}},
        "schnell.t5_act": {"files": changed("flux-schnell", t5, dense_act_fn="gelu")},
        "schnell.t5_proj": {"files": changed("flux-schnell", t5, ("dense_act_fn",), feed_forward_proj="gated-silu")},
        "schnell.t5_act_beats_proj": {"files": changed("flux-schnell", t5, feed_forward_proj="relu")},
        "schnell.t5_second_names": {"files": changed("flux-schnell", t5, num_layers=1, d_model=7, **mapped)},
        "sd3.clip_models": both(whole_clip("sd3", "text_encoder"), whole_clip("sd3", "text_encoder_2")),
        "pixart.ddim": {"files": stepped_by("pixart-sigma", ddim)},
        "pixart.euler": {"files": stepped_by("pixart-sigma", euler)},
        "pixart.ddpm": {"files": stepped_by("pixart-sigma", "DDPMScheduler")},
        "pixart.defaults_of_another_class": {"files": scheduler(
            "pixart-sigma", beta_end=0.5, _use_default_values=["beta_end"])},
        "pixart.norm_eps": {"files": changed("pixart-sigma", dit, norm_eps=0.05)},
        "hunyuan.ddim": {"files": stepped_by("hunyuan-v12", ddim)},
        "hunyuan.solver": {"files": stepped_by("hunyuan-v12", "DPMSolverMultistepScheduler")},
        "hunyuan.bert_act": {"files": changed("hunyuan-v12", bert, hidden_act="gelu_new")},
    }


FOLDERS = {"flux": ("flux-dev", FLUX), "schnell": ("flux-schnell", FLUX), "sd3": ("sd3", {**FLUX, **GUIDED}),
           "pixart": ("pixart-sigma", PIXART), "hunyuan": ("hunyuan-v12", {**GUIDED, "use_resolution_binning": False})}

# a tensor and what it is multiplied by, so that streams leave f16's range
LARGE = {
    "transformer/diffusion_pytorch_model.safetensors": {
        "transformer_blocks.0.ff_context.net.2.weight": 1.2e4, "single_transformer_blocks.1.proj_out.weight": 1e4},
    # the first block's attention is added in f16, all else in f32
    "text_encoder_2/model.safetensors": {
        "encoder.block.0.layer.0.SelfAttention.o.weight": 3e4,
        "encoder.block.1.layer.1.DenseReluDense.wo.weight": 1e5},
}


def build(folder: str, case: dict, at: Path) -> Path:
    shutil.copytree(HERE / folder, at)
    for file, value in case.get("files", {}).items():
        write_json(at / file, value)
    for file, tensors in case.get("tensors", {}).items():
        weights = load_file(at / file)
        weights |= {name: weights[like] * times for name, (like, times) in tensors.items()}
        save_file(weights, at / file, metadata={"format": "pt"})
    return at


def half_precision(at: Path) -> dict[str, torch.Tensor]:
    inputs = load_file(HERE / "flux-schnell.golden.safetensors")
    half = lambda key: inputs[key].half()  # noqa: E731
    transformer = FluxTransformer2DModel.from_pretrained(at / "transformer", torch_dtype=torch.float16)
    parts: dict[str, torch.Tensor] = {}
    for i, block in enumerate([*transformer.transformer_blocks, *transformer.single_transformer_blocks]):
        common.hook(parts, f"f16.flux.block.{i}", block)
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids")
    parts["f16.flux.out"] = transformer(
        **{name: half(f"transformer.{name}") for name in names}, return_dict=False,
        # as the pipeline with 704 of 1000 in f16
        timestep=torch.tensor([704.0, 704.0]).half() / 1000)[0]
    for i in range(5):
        txt, img = parts[f"f16.flux.block.{i}.0"], parts[f"f16.flux.block.{i}.1"]
        print("flux", i, txt.abs().max().item(), img.abs().max().item())

    t5 = T5EncoderModel.from_pretrained(at / "text_encoder_2", dtype=torch.float16).eval()
    states = t5(inputs["ids.t5.plain"], output_hidden_states=True).hidden_states
    print("t5", [state.abs().max().item() for state in states], [state.dtype for state in states])
    return parts | {f"f16.t5.{i}": state for i, state in enumerate(states)}


@torch.no_grad()
def make() -> None:
    out: dict[str, torch.Tensor] = {}
    written: dict[str, dict] = {}
    for key, case in cases().items():
        folder, arguments = FOLDERS[key.split(".")[0]]
        case = {"folder": folder, "files": {}, "tensors": {}, "arguments": {**COMMON, **arguments}} | case
        written[key] = case
        with tempfile.TemporaryDirectory() as at:
            pipe = DiffusionPipeline.from_pretrained(build(folder, case, Path(at) / key))
        pipe.set_progress_bar_config(disable=True)
        arguments = {k: v for k, v in case["arguments"].items() if k != "seed"}
        generator = torch.Generator("cpu").manual_seed(case["arguments"]["seed"])
        out[key] = pipe(**arguments, generator=generator, output_type="latent").images
        print(key, tuple(out[key].shape), out[key].std().item())
    large = {file: {name: [name, times] for name, times in tensors.items()} for file, tensors in LARGE.items()}
    written["f16"] = {"folder": "flux-schnell", "files": {}, "tensors": large, "arguments": COMMON}
    with tempfile.TemporaryDirectory() as at:
        out |= half_precision(build("flux-schnell", written["f16"], Path(at) / "f16"))
    write_json(HERE / "configurations.cases.json", written)
    save(out, "configurations")


if __name__ == "__main__":
    common.deterministic()
    make()
