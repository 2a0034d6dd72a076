#!/usr/bin/env bash
# Shards and a single file in one folder: diffusers reads the shards, transformers the file (diffusers 0.42.1, transformers
#   5.23.0)
#
# Expected: one rule for both; a pipeline's folder is read by both libraries.
# Seen: where an index of shards and a single file of the standard names lie side by side (people re-save with another shard
#   size into the same folder, or a hub revision adds shards and keeps the old file), a component of diffusers is the shards',
#   one of transformers the single file's. Neither says that there were two.
# So: one preference for a whole folder mixes old and new weights: half of the components come from the wrong save.
# xdit: follows each library for its own components (docs/files.md); the hub's download plan takes the same files.
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
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
clip = CLIPTextModel(CLIPTextConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
for model, single, library in ((vae, "diffusion_pytorch_model", "diffusers"), (clip, "model", "transformers")):
    weights = model.state_dict()
    with torch.no_grad():
        for value in weights.values():
            value.fill_(1)  # the shards hold ones, the single file sevens
    model.save_pretrained(library, max_shard_size="4KB")
    sevens = {name: torch.full_like(value, 7) for name, value in weights.items()}
    save_file(sevens, f"{library}/{single}.safetensors", metadata={"format": "pt"})
    loaded = type(model).from_pretrained(library)
    values = sorted({value for p in loaded.parameters() for value in p.unique().tolist()})
    print(f"{type(model).__name__}, of {library}: weights are {values}")
    took = {(1.0,): "the shards", (7.0,): "the single file"}.get(tuple(values))
    expect(took == ("the shards" if library == "diffusers" else "the single file"), f"{library} reads {took}")
PY
