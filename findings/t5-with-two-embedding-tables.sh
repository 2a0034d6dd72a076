#!/usr/bin/env bash
# T5 files with both embedding tables: tied by the config, yet not tied, and the one named "shared" is not read (transformers
#   5.23.0)
#
# Expected: `tie_word_embeddings: true` (the default) means one table, `shared.weight`, of which `encoder.embed_tokens.weight`
#   is another name; files may hold either or both.
# Seen: with one of the two, both names get it. With both, they stay two parameters, silently, and the encoder looks up
#   `embed_tokens`; a `shared` that was changed (new tokens, a merge, a fine-tune of a tool that knows only this name) has no
#   effect.
# So: a loader that prefers the canonical `shared.weight` reads other embeddings than upstream as soon as the tables differ.
# xdit: takes `encoder.embed_tokens.weight` where it is there, else `shared.weight`.
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
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

torch.manual_seed(0)
model = T5EncoderModel(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
model.save_pretrained("t5")
weights = load_file("t5/model.safetensors")
shared, own = "shared.weight", "encoder.embed_tokens.weight"
table = weights.pop(shared, None)
table = weights.pop(own, table)
tables = {shared: table, own: table.flip(0)}
ids = torch.tensor([[5, 17, 33, 1]])
out = {}
for held in ((shared,), (own,), (shared, own)):
    save_file(weights | {name: tables[name].clone() for name in held}, "t5/model.safetensors", metadata={"format": "pt"})
    model = T5EncoderModel.from_pretrained("t5").eval()
    with torch.no_grad():
        out[held] = model(ids).last_hidden_state
    tied = model.shared.weight is model.encoder.embed_tokens.weight
    print(f"file has {held}: config says tied {model.config.tie_word_embeddings}, one parameter {tied}")
    expect(tied == (len(held) == 1), "one parameter" if tied else "two parameters")
expect(torch.equal(out[shared, own], out[own,]), "with both, embed_tokens is looked up")
expect(not torch.equal(out[shared, own], out[shared,]), "and shared is not")
PY
