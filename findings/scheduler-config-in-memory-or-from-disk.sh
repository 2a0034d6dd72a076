#!/usr/bin/env bash
# The same swap of schedulers gives two schedules: through memory or through a file (diffusers 0.42.1)
#
# Expected: `B.from_config(a.config)` and `a.save_pretrained(d); B.from_pretrained(d)` give the same scheduler B.
# Seen: in memory, values that A left at A's own defaults are dropped and B's defaults come instead. A saved file has them
#   written out, so B takes A's. DDIM (default "leading") to DPM-Solver (default "linspace"): with 20 steps in memory it starts
#   at timestep 999, from disk at 940. Nothing is printed.
# So: a reference picture made by the documented one-line swap can't be repeated from the folder that the pipeline saves. Ground
#   truth for tests has to be loaded from disk.
# xdit: reads files only; what a file leaves out has the default of the class that runs. Golden pipelines are loaded from disk.
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
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

a = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
a.save_pretrained("scheduler")
memory = DPMSolverMultistepScheduler.from_config(a.config)
disk = DPMSolverMultistepScheduler.from_pretrained("scheduler")
again = DPMSolverMultistepScheduler.from_config(DDIMScheduler.from_pretrained("scheduler").config)
for name, b in (("in memory", memory), ("from disk", disk), ("from disk, then in memory", again)):
    b.set_timesteps(20)
    print(f"{name}: {b.config.timestep_spacing}, beta_end {b.config.beta_end}, timesteps {b.timesteps[:3].tolist()}..")
expect(memory.config.beta_end == disk.config.beta_end == 0.012, "values that A was given explicitly are kept by both")
expect(memory.config.timestep_spacing == "linspace", "in memory: B's default replaces A's")
expect(disk.config.timestep_spacing == "leading", "from disk: A's default is kept")
expect((memory.timesteps[0], disk.timesteps[0]) == (999, 940), "the schedules start at 999 and at 940")
PY
