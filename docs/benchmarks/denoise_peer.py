"""Times the denoising of diffusers, as `xdit bench --random-weights` does its own: the same configurations
(`xdit-models/published`), random weights, random text, no encoder, no VAE; diffusers' pipeline with its scheduler, latents out.

    python docs/benchmarks/denoise_peer.py --model flux-dev [--compile max-autotune-no-cudagraphs] [--attention cudnn]

Prints one JSON record with the fields of `xdit bench --json`. `cuda.sh` runs both in turns.
"""

import argparse
import contextlib
import inspect
import json
import platform
import statistics
import time
from pathlib import Path

import diffusers
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

PUBLISHED = Path(__file__).resolve().parents[2] / "xdit-models/published"
# cuDNN first, the others where it cannot
CUDNN = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=sorted(path.name for path in PUBLISHED.iterdir()))
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", metavar="MODE", help="default, max-autotune-no-cudagraphs, ..; eager if absent")
    parser.add_argument("--attention", choices=["default", "cudnn"], default="default")
    return parser.parse_args()


def transformer(folder: Path, class_name: str, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """With weights as those of `xdit bench`: normal with a standard deviation of 0.02, norms' around 1."""
    config = json.loads((folder / "transformer/config.json").read_text())
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = getattr(diffusers, class_name).from_config(config)
    torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0, 0.02, generator=generator)
    return model.to(dtype).eval()


def text(config, pipeline: str, device: torch.device, dtype: torch.dtype) -> dict:
    """Random embeddings of the published numbers of tokens, no token of which is padding."""
    generator = torch.Generator(device).manual_seed(1)
    random = lambda *shape: torch.randn(1, *shape, generator=generator, device=device, dtype=dtype)
    seen = lambda n: torch.ones(1, n, device=device, dtype=torch.long)
    if pipeline == "FluxPipeline":
        n = 512 if config.guidance_embeds else 256
        return dict(prompt_embeds=random(n, config.joint_attention_dim),
                    pooled_prompt_embeds=random(config.pooled_projection_dim), guidance_scale=3.5)
    both = dict()
    for side in ("", "negative_"):
        if pipeline == "StableDiffusion3Pipeline":
            both[f"{side}prompt_embeds"] = random(77 + 256, config.joint_attention_dim)
            both[f"{side}pooled_prompt_embeds"] = random(config.pooled_projection_dim)
        elif pipeline == "PixArtSigmaPipeline":
            both[f"{side}prompt_embeds"] = random(300, config.caption_channels)
            both[f"{side}prompt_attention_mask"] = seen(300)
        else:
            both[f"{side}prompt_embeds"] = random(config.text_len, config.cross_attention_dim)
            both[f"{side}prompt_attention_mask"] = seen(config.text_len)
            both[f"{side}prompt_embeds_2"] = random(config.text_len_t5, config.cross_attention_dim_t5)
            both[f"{side}prompt_attention_mask_2"] = seen(config.text_len_t5)
    if pipeline == "StableDiffusion3Pipeline":
        return both | dict(guidance_scale=7.0)
    if pipeline == "PixArtSigmaPipeline":
        return both | dict(guidance_scale=4.5, negative_prompt=None, use_resolution_binning=False)
    return both | dict(guidance_scale=5.0, use_resolution_binning=False)


def open_pipeline(args: argparse.Namespace, device: torch.device, dtype: torch.dtype):
    folder = PUBLISHED / args.model
    index = json.loads((folder / "model_index.json").read_text())
    name = index["_class_name"]
    model = transformer(folder, index["transformer"][1], device, dtype)
    inputs = text(model.config, name, device, dtype)
    if args.compile:
        # in place: the pipeline keeps its model
        model.compile(mode=args.compile)
    scheduler = getattr(diffusers, index["scheduler"][1])
    scheduler = scheduler.from_config(json.loads((folder / "scheduler/scheduler_config.json").read_text()))
    cls = getattr(diffusers, name)
    # no encoder, no tokenizer, no VAE
    parts = {part: None for part, kind in inspect.signature(cls.__init__).parameters.items() if kind.default is kind.empty}
    parts.pop("self")
    if name == "HunyuanDiTPipeline":
        parts["requires_safety_checker"] = False
    pipeline = cls(**parts | dict(transformer=model, scheduler=scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, inputs


@torch.no_grad()
def main() -> None:
    args = arguments()
    diffusers.logging.set_verbosity_error()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16, f16=torch.float16)[args.dtype]
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    start = time.perf_counter()
    pipeline, inputs = open_pipeline(args, device, dtype)
    wait()
    load = time.perf_counter() - start
    call = dict(height=args.size, width=args.size, num_inference_steps=args.steps, output_type="latent", **inputs)
    attention = sdpa_kernel(CUDNN, set_priority=True) if args.attention == "cudnn" else contextlib.nullcontext()
    seconds, host = [], []
    with attention:
        for i in range(args.warmup + args.repeat):
            wait()
            start = time.perf_counter()
            latents = pipeline(generator=torch.Generator(device).manual_seed(2), **call)[0]
            issued = time.perf_counter() - start
            wait()
            whole = time.perf_counter() - start
            if i == 0:
                first = whole
            if i >= args.warmup:
                seconds.append(whole)
                host.append(issued / args.steps)
    spread = lambda xs: dict(median=statistics.median(xs), best=min(xs))
    print(json.dumps(dict(
        model=args.model, height=args.size, width=args.size, steps=args.steps, dtype=args.dtype, device=args.device,
        compile=args.compile, attention=args.attention,
        seconds=dict(load=load, first=first, denoise=spread(seconds) | dict(all=seconds), host_step=spread(host)),
        memory=dict(device_bytes=torch.cuda.max_memory_allocated() if on_gpu else None),
        finite=bool(torch.isfinite(torch.as_tensor(latents).float()).all()),
        versions=f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}",
        card=torch.cuda.get_device_name() if on_gpu else "CPU",
    )))


main()
