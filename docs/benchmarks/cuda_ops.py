"""Times xdit's operations on a GPU in turns with PyTorch's: attention against its best backend, dense layers, norms.

    cargo build --release --benches --features xdit-core/cuda
    python docs/benchmarks/cuda_ops.py target/release/deps/cuda_ops-* [--rounds 3]
"""
import argparse
import re
import statistics
import subprocess

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = ["24x4608x4608x128", "24x16896x16896x128", "6x4608x4608x128", "24x2304x4608x128", "24x4250x4250x64",
             "16x4096x4096x72", "16x4096x4096x88", "24x4608x4608x96"]
LINEAR = ["4608x3072x9216", "4608x3072x12288", "4608x12288x3072", "4608x3072x3072", "4096x3072x12288", "512x3072x9216", "4096x1152x4608"]


def timed(run, seconds):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    n = max(3, min(400, int(8e-3 / seconds)))
    times = []
    for _ in range(9):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(n):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / n)
    return statistics.median(times)


def attention(shape):
    h, nq, nk, d = map(int, shape.split("x"))
    heads = lambda n: torch.randn(1, n, h, d, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    q, k, v = heads(nq), heads(nk), heads(nk)

    def run():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return timed(run, 4 * h * nq * nk * d / 6e14)


def linear(shape):
    m, k, n = map(int, shape.split("x"))
    x = torch.randn(1, m, k, device="cuda", dtype=torch.bfloat16)
    layer = torch.nn.Linear(k, n, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        return timed(lambda: layer(x), 2 * m * k * n / 6e14)


def ours(binary, *args):
    out = subprocess.run([binary, *args], capture_output=True, text=True, timeout=120)
    found = dict(re.findall(r"^(.*?): ([\d.]+) ms", out.stdout, re.M))
    if not found:
        print(out.stdout[-2000:], out.stderr[-2000:], flush=True)
    return {name: float(ms) for name, ms in found.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="attention,linear,rows")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(0), torch.__version__, "median ms of", args.rounds, "rounds")
    rows = {}
    for _ in range(args.rounds):
        if "attention" in args.only:
            theirs = {shape: attention(shape) for shape in ATTENTION}
            mine = ours(args.binary, "attention", *ATTENTION)
            for shape in ATTENTION:
                rows.setdefault(f"attention {shape}", []).append((theirs[shape], mine.get(f"attention {shape}", float("nan"))))
        if "linear" in args.only:
            theirs = {shape: linear(shape) for shape in LINEAR}
            mine = ours(args.binary, "linear", *LINEAR)
            for shape in LINEAR:
                for act in ("Identity", "GeluTanh"):
                    rows.setdefault(f"linear {shape} {act}", []).append((theirs[shape], mine.get(f"linear {shape} {act}", float("nan"))))
        if "rows" in args.only:
            for name, ms in ours(args.binary, "rows").items():
                rows.setdefault(name, []).append((float("nan"), ms))
    for name, times in rows.items():
        theirs, mine = (statistics.median(t[i] for t in times) for i in (0, 1))
        print(f"{name:42s} PyTorch {theirs:8.4f}  xdit {mine:8.4f}  ratio {mine / theirs:.3f}", flush=True)


if __name__ == "__main__":
    main()
