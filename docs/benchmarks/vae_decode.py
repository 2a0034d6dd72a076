"""FLUX's decoder of random weights in PyTorch, as diffusers' AutoencoderKL computes it (which need not be installed).

    python docs/benchmarks/vae_decode.py [--size 1024] [--repeat 9] [--compile]

Prints, for each order of memory, the median seconds of a decode in bf16 and the most memory that PyTorch held. The same
here: vae_decode --drawn --device cuda --dtype bf16 --size 1024 (feature cuda).
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Resnet(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, c_in, 1e-6), nn.GroupNorm(32, c_out, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return (x if self.shortcut is None else self.shortcut(x)) + y


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, 1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.norm(x.view(b, c, h * w)).transpose(1, 2)
        q, k, v = (f(y).view(b, -1, 1, c).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, c)
        return self.out(y).transpose(-1, -2).reshape(b, c, h, w) + x


class Decoder(nn.Module):
    def __init__(self, channels=(512, 512, 256, 128), latent=16, layers=3):
        super().__init__()
        c = channels[0]
        self.conv_in = nn.Conv2d(latent, c, 3, padding=1)
        self.mid = nn.Sequential(Resnet(c, c), Attention(c), Resnet(c, c))
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for i, out in enumerate(channels):
            self.up.append(nn.Sequential(*(Resnet(c if j == 0 else out, out) for j in range(layers))))
            self.upsample.append(nn.Conv2d(out, out, 3, padding=1) if i + 1 < len(channels) else nn.Identity())
            c = out
        self.norm, self.conv_out = nn.GroupNorm(32, c, 1e-6), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for i, (block, conv) in enumerate(zip(self.up, self.upsample)):
            x = block(x)
            if i + 1 < len(self.up):
                x = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm(x)))


def measure(name, decoder, latents, repeat):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    times = []
    with torch.inference_mode():
        for _ in range(3 + repeat):
            torch.cuda.synchronize()
            start = time.perf_counter()
            decoder(latents)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    held, used = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    print(f"{name}: {statistics.median(times[3:]):.4f} s (best {min(times[3:]):.4f}), "
          f"{held / 2**20:.0f} MiB held, {used / 2**20:.0f} MiB used", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    decoder = Decoder().to("cuda", torch.bfloat16).requires_grad_(False)
    latents = torch.randn(1, 16, args.size // 8, args.size // 8, device="cuda", dtype=torch.bfloat16)
    print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}")
    measure("eager", decoder, latents, args.repeat)
    decoder = decoder.to(memory_format=torch.channels_last)
    latents = latents.to(memory_format=torch.channels_last)
    measure("eager, channels last", decoder, latents, args.repeat)
    torch.backends.cudnn.benchmark = True
    measure("eager, channels last, cudnn.benchmark", decoder, latents, args.repeat)
    if args.compile:
        measure("compiled, channels last", torch.compile(decoder, mode="max-autotune-no-cudagraphs"), latents, args.repeat)


if __name__ == "__main__":
    main()
