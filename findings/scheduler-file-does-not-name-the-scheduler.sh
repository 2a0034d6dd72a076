#!/usr/bin/env bash
# `scheduler_config.json` names a scheduler class, and that name is not read (diffusers 0.42.1)
#
# Expected: the `_class_name` in a component's own file says what the component is; so people change the sampler of a folder
#   there.
# Seen: the class is the one that `model_index.json` names, whatever the file says or if it says nothing. The file's options
#   that the class happens to know by name are applied all the same (`use_karras_sigmas` of a DPM-Solver file changes the noise
#   levels of flow matching), the others are dropped or kept unread in its config. No error, no warning. The transformer's file
#   is treated likewise.
# So: a loader that picks the sampler by the scheduler's own file steps with another one than diffusers: for FLUX that is noise
#   instead of a picture. And a file's foreign options can't just be refused or ignored as a whole.
# xdit: the class of `model_index.json`, with the options of the file that this class has.
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
import json
import sys
import numpy as np
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

transformer = FluxTransformer2DModel(in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=1,
    joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8))
nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
FluxPipeline(FlowMatchEulerDiscreteScheduler(), transformer=transformer, **nothing).save_pretrained("flux")
with open("flux/model_index.json") as file:
    print("model_index.json:", json.load(file)["scheduler"])


def opened():
    with open("flux/scheduler/scheduler_config.json") as file:
        name = json.load(file).get("_class_name")
    scheduler = FluxPipeline.from_pretrained("flux", **nothing).scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    print(f"scheduler_config.json: {name}; runs: {type(scheduler).__name__}, sigmas {scheduler.sigmas[:4].numpy().round(3)}..")
    return scheduler


plain = opened()
DPMSolverMultistepScheduler(use_karras_sigmas=True, solver_order=3).save_pretrained("flux/scheduler")
other = opened()
expect(type(other) is FlowMatchEulerDiscreteScheduler, "the class is the index's, not the file's")
expect(not np.allclose(plain.sigmas, other.sigmas), "but an option that both classes have, use_karras_sigmas, is taken from the file")
expect(other.config.get("beta_end") is not None, "options that it has not stay in its config, unread")
with open("flux/scheduler/scheduler_config.json", "w") as file:
    json.dump({"num_train_timesteps": 1000}, file)
expect(type(opened()) is FlowMatchEulerDiscreteScheduler, "a file without a class is fine")
with open("flux/transformer/config.json") as file:
    config = json.load(file)
with open("flux/transformer/config.json", "w") as file:
    json.dump(config | {"_class_name": "SD3Transformer2DModel"}, file)
transformer = FluxPipeline.from_pretrained("flux", **nothing).transformer
expect(type(transformer) is FluxTransformer2DModel, "and so is a transformer's file that names another one")
PY
