"""What PipeFusion's approximation costs, seen with diffusers: draws the held-out captions in patches, with keys and values of
the previous step where there are none of this one, and counts the right pictures.

    python displaced.py MODEL --settings 2:1 4:1 --steps 16 28 --shift 0.5 1.6 --seeds 0 1000 2000

It knows nothing of xdit's code, draws hundreds of pictures at once, and so compares samplers' settings by more pictures than
`pipefusion_quality` does. On a GPU a setting takes seconds.
"""

import argparse
import itertools
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

import evaluate
from train import PRESETS, image_ids, pack

SIDE, TXT = PRESETS["full"].side, PRESETS["full"].t5_length
ROWS = SIDE // 16


class Stale:
    """Attention that remembers keys and values of every call of a step, `[n, heads, 48 + 256, width]`."""

    def __init__(self):
        self.call, self.patch, self.patches, self.kept = 0, None, [], {}

    def begin(self, patch):
        """The transformer is about to be called with this patch, or with the whole picture."""
        self.call, self.patch = 0, patch

    def __call__(self, query, key, value, **_):
        query, *fresh = (x.transpose(1, 2) for x in (query, key, value))
        if self.patch is None:
            self.kept[self.call] = [x.clone() for x in fresh]
        else:
            start, end = self.patches[self.patch]
            for kept, new in zip(self.kept[self.call], fresh):
                kept[:, :, TXT + start : TXT + end] = new[:, :, TXT:]
                # The text goes through the blocks once a step: what later patches make of it nobody sees.
                if self.patch == 0:
                    kept[:, :, :TXT] = new[:, :, :TXT]
        key, value = self.kept[self.call]
        self.call += 1
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@torch.no_grad()
def draw(pipe, attend, text, latents, sigmas, n_patches, warmup):
    """Pictures [n, 256, 256, 3] of `latents`, packed noise, which is overwritten."""
    rows = [ROWS // n_patches + (i < ROWS % n_patches) for i in range(n_patches)]
    ends = [ROWS * end for end in itertools.accumulate(rows)]
    attend.patches, attend.kept = list(zip([0, *ends], ends)), {}
    words, pooled, text_ids = text
    positions = image_ids(ROWS, latents.device)
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:])):
        for patch in [None] if step < warmup or n_patches == 1 else range(n_patches):
            start, end = (0, ROWS * ROWS) if patch is None else attend.patches[patch]
            attend.begin(patch)
            flow = pipe.transformer(
                hidden_states=latents[:, start:end],
                timestep=torch.full((len(latents),), sigma, device=latents.device),
                pooled_projections=pooled,
                encoder_hidden_states=words,
                txt_ids=text_ids,
                img_ids=positions[start:end],
                return_dict=False,
            )[0]
            latents[:, start:end] += (following - sigma) * flow
    pictures = []
    for part in latents.split(50):
        part = pipe._unpack_latents(part, SIDE, SIDE, 8)
        part = part / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
        part = pipe.vae.decode(part, return_dict=False)[0] / 2 + 0.5
        pictures.append((part.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(pictures)


def psnr(a, b):
    """Mean over pictures, 99 for equal ones."""
    errors = [np.mean((x.astype(float) - y) ** 2) for x, y in zip(a, b)]
    return float(np.mean([min(99, 10 * math.log10(255**2 / max(error, 1e-9))) for error in errors]))


def main():
    """One device, then every setting; for all numbers of steps and shifts."""
    import diffusers.models.transformers.transformer_flux as upstream
    from diffusers import FluxPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--settings", nargs="+", default=["2:1", "4:1", "8:1"], help="PATCHES:WARMUP, warm-up at least 1")
    parser.add_argument("--steps", type=int, nargs="+", default=[28])
    parser.add_argument("--shift", type=float, nargs="+", default=[1.6], help="the schedule's mu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the first caption; one more for each")
    parser.add_argument("--limit", type=int, help="only so many captions")
    options = parser.parse_args()

    with open(os.path.join(os.path.dirname(__file__), "captions.txt")) as file:
        captions = [line.strip() for line in file if line.strip()][: options.limit]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    pipe = FluxPipeline.from_pretrained(options.model, torch_dtype=torch.float32).to(device)
    attend = upstream.dispatch_attention_fn = Stale()
    with torch.no_grad():
        text = pipe.encode_prompt(captions, captions, max_sequence_length=TXT, device=device)

    def noise(seed):
        seeds = range(seed, seed + len(captions))
        each = [torch.randn(1, 16, 32, 32, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return pack(torch.cat(each)).to(device)

    noises = [noise(seed) for seed in options.seeds]
    settings = [(1, 0)] + [tuple(map(int, setting.split(":"))) for setting in options.settings]
    for n_steps, mu in itertools.product(options.steps, options.shift):
        sigmas = [math.exp(mu) / (math.exp(mu) + n_steps / (n_steps - i) - 1) for i in range(n_steps)] + [0.0]
        whole = None
        for n_patches, warmup in settings:
            drawn = [draw(pipe, attend, text, noise.clone(), sigmas, n_patches, warmup) for noise in noises]
            # The first setting is one device.
            whole = whole or drawn
            likeness = [psnr(*pair) for pair in zip(drawn, whole)]
            right = sum(evaluate.score(captions, pictures)[1]["all"][0] for pictures in drawn)
            count = len(captions) * len(options.seeds)
            print(
                f"{n_steps} steps, shift {mu}, patches {n_patches}, warm-up {warmup}: {right} of {count} right "
                f"({100 * right / count:.2f} %), psnr {np.mean(likeness):.1f} dB",
                flush=True,
            )


if __name__ == "__main__":
    main()
