"""Times one transformer step of a mid-size Flux on the CPU: diffusers and xdit in turns, same weights, same threads.

    cargo build --release --benches
    python docs/benchmarks/cpu_step.py --work /tmp/cpu-step

diffusers runs as it is: eager, f32, `scaled_dot_product_attention`, no `torch.compile`. `--program none` times it alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import diffusers
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load, save_file

ROOT = Path(__file__).resolve().parents[2]
SIDE, TEXT = 32, 128


def newest_build() -> Path:
    """The newest build of `xdit-models/benches/cpu_step.rs`."""
    builds = [p for p in (ROOT / "target/release/deps").glob("cpu_step-*") if os.access(p, os.X_OK) and not p.suffix]
    if not builds:
        raise SystemExit("no program: run cargo build --release --benches")
    return max(builds, key=lambda p: p.stat().st_mtime)


def make(work: Path) -> None:
    """The model as a diffusers folder and its inputs, from a fixed seed."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=64, num_layers=6, num_single_layers=12, attention_head_dim=64, num_attention_heads=12,
        joint_attention_dim=768, pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 24, 24))
    # every weight has a say in the result, so that the comparison of results means something
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        if p.ndim == 1:
            p.data = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            p.data = noise / p[0].numel() ** 0.5
    # one file: the program reads no index
    model.save_pretrained(work / "transformer", max_shard_size="10GB")
    save_file({
        "hidden_states": torch.randn(1, SIDE * SIDE, 64), "encoder_hidden_states": torch.randn(1, TEXT, 768),
        "pooled_projections": torch.randn(1, 768),
    }, work / "inputs.safetensors")


def about_this_machine(threads: int) -> list[str]:
    cpu = ""
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next((l.split(":")[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")), "")
    built = [l.strip(" -") for l in torch.__config__.show().splitlines() if "Math Kernel" in l or "MKL-DNN" in l]
    return [
        f"{cpu or platform.processor()}, {threads} threads, {torch.backends.cpu.get_cpu_capability()}",
        f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}",
        *built,
    ]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model, about 1 GB")
    parser.add_argument("--program", help="the Rust program; without it the newest build; `none` leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5, help="steps per side and round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    program = None if args.program == "none" else Path(args.program or newest_build())

    torch.set_num_threads(args.threads)
    print(*about_this_machine(args.threads), sep="\n")
    if not (args.work / "inputs.safetensors").exists():
        make(args.work)
    model = FluxTransformer2DModel.from_pretrained(args.work / "transformer").eval()
    # read whole, not mapped: the file is written again below
    inputs = load((args.work / "inputs.safetensors").read_bytes())
    inputs.pop("expected", None)
    ids = torch.zeros(SIDE, SIDE, 3)
    ids[..., 1] += torch.arange(SIDE)[:, None]
    ids[..., 2] += torch.arange(SIDE)[None]

    def step() -> torch.Tensor:
        return model(
            **inputs, timestep=torch.tensor([0.7]), guidance=torch.tensor([3.5]), img_ids=ids.reshape(-1, 3),
            txt_ids=torch.zeros(TEXT, 3), return_dict=False)[0]

    # also the warm-up
    save_file({**inputs, "expected": step().contiguous()}, args.work / "inputs.safetensors")
    environment = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    theirs, ours, ratios = [], [], []
    for i in range(args.rounds):
        seconds = []
        for _ in range(args.repeat):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        theirs += seconds
        a = statistics.median(seconds)
        if program is None:
            print(f"round {i}: diffusers {a:.3f} s (best {min(seconds):.3f})")
            continue
        command = [program, "--dir", args.work, "--repeat", str(args.repeat)]
        answer = json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
        ours += answer["seconds"]
        b = statistics.median(answer["seconds"])
        ratios.append(b / a)
        print(f"round {i}: diffusers {a:.3f} s (best {min(seconds):.3f}), xdit {b:.3f} s "
              f"(best {min(answer['seconds']):.3f}), xdit/diffusers {b / a:.3f}, relative L2 {answer['rel_l2']:.1e}")

    for name, pick in (("median", statistics.median), ("best", min)):
        line = f"{name}: diffusers {pick(theirs):.3f} s"
        if ours:
            line += f", xdit {pick(ours):.3f} s, xdit/diffusers {pick(ours) / pick(theirs):.3f}"
        print(line)
    if ratios:
        print(f"xdit/diffusers by round: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


main()
