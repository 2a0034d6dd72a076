#!/usr/bin/env bash
# DDIM does not step to the next timestep of its list (diffusers 0.42.1)
#
# Expected: `DDIMScheduler.step` goes from one timestep of the schedule to the next, as DDPM and the multistep solvers do.
# Seen: it goes from t to t - 1000 // n, whatever `timestep_spacing` says. With "leading" that is the next timestep. With
#   "linspace" and 28 steps the list is 999, 962, 925, .. but the first step lands at 964 and the second starts from 962: the
#   model is told a noise level that the latents do not have, at every single step. "trailing" misses wherever 1000 / n is not
#   whole.
# So: who takes the next timestep of the list, as the paper has it, draws another picture than diffusers with the same file.
# xdit: steps by 1000 // n too, for every spacing; tested against upstream step by step (golden_schedulers.rs).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv} # optional: an absolute path of a venv to keep between runs
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.15.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 \
    safetensors==0.8.0 huggingface_hub==2.4.0
cd "$work"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 OMP_NUM_THREADS=1
export DIFFUSERS_VERBOSITY=error TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
"$venv/bin/python" - <<'PY'
import sys
import torch
from diffusers import DDIMScheduler

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

def lands_at(scheduler, t):
    """The timestep whose noise level the sample has after a step from t, with a perfect model."""
    a = scheduler.alphas_cumprod[t].double()
    picture, noise = 0.5, 1.0
    sample = torch.full((1, 1, 1, 1), float(a.sqrt() * picture + (1 - a).sqrt() * noise), dtype=torch.float64)
    out = scheduler.step(torch.full_like(sample, noise), t, sample).prev_sample.item()
    a = scheduler.alphas_cumprod.double()
    return int((a.sqrt() * picture + (1 - a).sqrt() * noise - out).abs().argmin())


for spacing, n, n_missed in (("leading", 28, 0), ("linspace", 28, 27), ("trailing", 28, 19), ("trailing", 50, 0)):
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    ts = scheduler.timesteps.tolist()
    landed = [lands_at(scheduler, t) for t in ts[:-1]]
    print(f"{spacing} {n}: timesteps {ts[:4]}.., steps land at {landed[:3]}..")
    missed = sum(a != b for a, b in zip(landed, ts[1:]))
    expect(missed == n_missed, f"{missed} of {n - 1} steps miss the next timestep")
    expect(all(a == t - 1000 // n for a, t in zip(landed, ts)), f"every step is {1000 // n} long")
PY
