#!/usr/bin/env bash
# FLUX.2: a slightly larger picture is drawn with a wholly different schedule (diffusers 0.42.1)
#
# Expected: the shift of the noise schedule grows smoothly with the picture, as FLUX.1's does.
# Seen: `Flux2Pipeline` interpolates between two fitted lines by the number of steps up to 4300 image tokens, and takes the
#   200-step line alone above it. At the border the shift mu falls from 2.31 to 1.18 with 4 steps (2.17 with 28), and depends on
#   the steps no more. 1024x1024 (4096 tokens) and 1056x1056 (4356) lie on both sides: the second of four steps starts at noise
#   0.97 in one and 0.91 in the other, the last at 0.77 and 0.52. Only above 11,000 tokens mu is as high as it was at 4300.
# So: a schedule can't be cached by steps alone, and a tiny change of size is no small change of the picture. A smooth formula
#   (or one clamp) that fits the 1024 px results is wrong just above.
# xdit: does not run FLUX.2 yet; its schedule will be tested on both sides of the border.
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
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)


class Stop(Exception):
    pass


def sigmas(side, n):
    """The noise levels that the pipeline itself sets for a square picture; it is stopped at its first model call."""
    transformer = Flux2Transformer2DModel(in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=1, joint_attention_dim=8, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False)

    def stop(*_args, **_kwargs):
        raise Stop

    transformer.forward = stop
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline = Flux2KleinPipeline(scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=transformer,
        is_distilled=True)
    pipeline.set_progress_bar_config(disable=True)
    try:
        pipeline(prompt_embeds=torch.zeros(1, 2, 8), height=side, width=side, num_inference_steps=n, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0))
    except Stop:
        pass
    return scheduler.sigmas[:-1].double().numpy()


def mu(levels):
    """The exponential shift, from the second noise level of an even schedule from 1 to 1 / n."""
    n = len(levels)
    even = np.linspace(1, 1 / n, n)[1]
    return np.log(levels[1] / (1 - levels[1]) / (even / (1 - even)))


found = {}
for side in (512, 1024, 1056, 1504, 1792):
    for n in (4, 28):
        found[side, n] = levels = sigmas(side, n)
        print(f"{side} px, {(side // 16) ** 2} tokens, {n} steps: mu {mu(levels):.3f}, starts {np.round(levels[[1, -1]], 3)}")
at = lambda side, n: mu(found[side, n])
expect(at(1024, 4) > at(512, 4) and at(1792, 4) > at(1504, 4), "mu grows with the picture on each side of the border")
expect(at(1024, 4) - at(1056, 4) > 1.0, "but falls by more than 1 from 1024 to 1056 px, with 4 steps")
expect(at(1024, 28) - at(1056, 28) > 0.9, "and by more than 0.9 with 28")
expect(abs(at(1024, 4) - at(1024, 28)) > 0.1, "below, the number of steps matters")
expect(abs(at(1056, 4) - at(1056, 28)) < 1e-3, "above, it does not")
PY
