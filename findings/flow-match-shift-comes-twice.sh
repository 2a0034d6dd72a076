#!/usr/bin/env bash
# Flow matching shifts the last noise level twice, unless the caller passes sigmas (diffusers 0.42.1)
#
# Expected: `FlowMatchEulerDiscreteScheduler(shift=s).set_timesteps(n)` is n even steps from 1 to 1/1000, shifted once by s x /
#   (1 + (s - 1) x). And `set_shift(s)` is the same as constructing with s.
# Seen: the constructor shifts its table and remembers the shifted ends, 1 and sigma_min; `set_timesteps(n)` spaces evenly
#   between those, then shifts again. With SD3's shift 3 the last step of four starts from 0.0089, not 0.0030.
#   `set_timesteps(sigmas=..)`, which FLUX's pipeline uses, shifts once. `set_shift(3)` on a scheduler built with 1 shifts once
#   too, so it differs from both.
# So: the same class has two schedules for the same n and shift, and SD3 and FLUX are on different sides.
# xdit: follows each pipeline: sigmas of the scheduler's own for Stable Diffusion 3, passed ones for FLUX.
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
import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

n, s = 4, 3.0
even = np.linspace(1, 1 / 1000, n)
once = s * even / (1 + (s - 1) * even)
built = FlowMatchEulerDiscreteScheduler(shift=s)
built.set_timesteps(n)
passed = FlowMatchEulerDiscreteScheduler(shift=s)
passed.set_timesteps(sigmas=even)
late = FlowMatchEulerDiscreteScheduler(shift=1.0)
late.set_shift(s)
late.set_timesteps(n)
show = lambda x: [round(float(v), 4) for v in x]
print("shifted once:          ", show(once))
print("set_timesteps(n):      ", show(built.sigmas[:-1]))
print("set_timesteps(sigmas): ", show(passed.sigmas[:-1]))
print("set_shift, then (n):   ", show(late.sigmas[:-1]))
low = 1 / 1000
for _ in range(2):
    low = s * low / (1 + (s - 1) * low)
expect(abs(built.sigmas[-2] - low) < 1e-6, f"set_timesteps(n) ends at the doubly shifted {low:.4f}")
expect(np.allclose(passed.sigmas[:-1], once, atol=1e-6), "passed sigmas are shifted once")
expect(np.allclose(late.sigmas[:-1], once, atol=1e-6), "set_shift after construction shifts once")
PY
