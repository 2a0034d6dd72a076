#!/usr/bin/env bash
# T5 in f16 is two different encoders: `from_pretrained(dtype=torch.float16)` and `.to(torch.float16)` (transformers 5.23.0)
#
# Expected: the same weights in the same dtype, so the same numbers.
# Seen: loading in f16 keeps the matrix `wo` of each feed-forward in f32, and with it all hidden states from the first block on;
#   `.to(torch.float16)` casts all and clamps what overflows. For weights made for bf16, as T5-XXL's are, activations leave
#   f16's range: cast, the encoder is far off from f32; loaded, close. Loading in bf16 keeps nothing in f32. `model.dtype` says
#   f16 both times.
# So: "T5 in f16" has to say which. An engine that stores all weights in f16 and clamps is `.to()`, not what pipelines load.
# xdit: `wo` and the sums after it are f32 if the dtype is f16, as loaded.
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
from transformers import T5Config, T5EncoderModel

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

torch.manual_seed(0)
config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu")
model = T5EncoderModel(config).eval()
with torch.no_grad():
    for name, p in model.named_parameters():
        if ".wi_" in name or ".wo." in name:
            p.normal_(std=1.5)  # activations as large as a model trained in bf16 may have
    model.encoder.block[0].layer[1].DenseReluDense.wo.weight.mul_(100)
model.half().float().save_pretrained("t5")  # weights that f16 holds exactly

loads = dict(
    f32=lambda: T5EncoderModel.from_pretrained("t5", dtype=torch.float32),
    loaded=lambda: T5EncoderModel.from_pretrained("t5", dtype=torch.float16),
    cast=lambda: T5EncoderModel.from_pretrained("t5", dtype=torch.float32).to(torch.float16),
    bf16=lambda: T5EncoderModel.from_pretrained("t5", dtype=torch.bfloat16),
)
ids = torch.tensor([[5, 17, 33, 2, 41, 8, 1]])
out, wo = {}, {}
for name, load in loads.items():
    model = load().eval()
    wo[name] = model.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    out[name] = states[-1].float()
    print(f"{name}: dtype {model.dtype}, wo {wo[name]}, states after block 1: {states[1].dtype}, up to {states[1].abs().max():.0f}")
off = {name: ((x - out["f32"]).norm() / out["f32"].norm()).item() for name, x in out.items()}
print("relative L2 to f32:", {name: f"{x:.1e}" for name, x in off.items()})
expect(wo["loaded"] == torch.float32 and wo["cast"] == torch.float16, "loading keeps wo in f32, casting does not")
expect(wo["bf16"] == torch.bfloat16, "loading in bf16 keeps nothing")
expect(off["loaded"] < 0.02 and off["cast"] > 0.1, "where states leave f16's range the two differ by far")
PY
