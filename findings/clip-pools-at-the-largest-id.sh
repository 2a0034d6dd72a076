#!/usr/bin/env bash
# CLIP's pooled vector is taken at the largest token id, not at the end of the text (transformers 5.23.0)
#
# Expected: `pooler_output` is the state of the token `eos_token_id`, the first of them.
# Seen: if the config says `eos_token_id: 2`, as the CLIP of FLUX.1 and of Stable Diffusion does (its real end is 49407), the
#   place is argmax over the ids: right only because the end has the largest id. A token added behind it (textual inversion,
#   added tokens for a character or a style) has a larger id, and the pooled vector is its state: what comes after it does not
#   count any more. With `eos_token_id` corrected to 49407 the same ids are pooled at the end.
# So: looking for the end's id, from the config (2, which is '#') or from the tokenizer, is wrong for one of the two kinds of
#   file; and FLUX's modulation hangs on this vector.
# xdit: the largest id if the config says 2, else the first token of that id; the same rule.
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
from transformers import CLIPTextConfig, CLIPTextModel

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

START, END, ADDED = 49406, 49407, 49408
ids = {"plain": [START, 320, 736, 7651, END, END], "with an added token": [START, 320, ADDED, 7651, END, END]}
places = {}
for eos in (2, END):
    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig(vocab_size=49409, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=eos)).eval()
    for name, tokens in ids.items():
        with torch.no_grad():
            out = model(torch.tensor([tokens]))
        same = [torch.equal(state, out.pooler_output[0]) for state in out.last_hidden_state[0]]
        places[eos, name] = same.index(True)
        print(f"eos_token_id {eos}, {name} {tokens}: pooled at place {same.index(True)}")
expect(places[2, "plain"] == places[END, "plain"] == 4, "a plain text is pooled at its end")
expect(places[2, "with an added token"] == 2, "with eos_token_id 2, at the added token")
expect(places[END, "with an added token"] == 4, "with the real id, at the end")
PY
