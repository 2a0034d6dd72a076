#!/usr/bin/env bash
# Padding at the left: the states of padded places depend on the attention kernel (transformers 5.23.0, torch 2.15.0)
#
# Expected: "sdpa" and "eager" are two ways to compute the same numbers, up to rounding, at every place.
# Seen: with causal attention and padding at the left, padded places may look at nothing. Eager masks with the smallest number,
#   so that their softmax is even over all places, hidden and future ones too: the mean of all values. sdpa gives zeros. From
#   the first layer on their states are half as far apart as they are long; real tokens agree. The default is sdpa.
# So: harmless for generating text, not for a diffusion model that takes hidden states with the padding and does not mask it, as
#   FLUX.2's transformer does: the kernel of the text encoder changes the picture. A re-implementation must give zeros for rows
#   without keys (a plain softmax gives NaN with -inf, the mean with a large negative number), or pad at the right.
# xdit: its encoders of today pad at the right. The decoders that FLUX.2 needs are to follow sdpa.
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
from diffusers import Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3Model

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

torch.manual_seed(0)
model = Qwen3Model(Qwen3Config(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16)).eval()
transformer = Flux2Transformer2DModel(in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False).eval()
image = torch.randn(1, 16, 8)
image_ids = torch.tensor([[0, i // 4, i % 4, 0] for i in range(16)])
text_ids = torch.tensor([[0, 0, 0, i] for i in range(6)])


def both(tokens, mask):
    """Relative difference between the kernels, of each place's state and of what FLUX.2's transformer makes of them."""
    states, predictions = {}, {}
    for kernel in ("sdpa", "eager"):
        model.set_attn_implementation(kernel)
        with torch.no_grad():
            out = model(torch.tensor([tokens]), attention_mask=torch.tensor([mask]), output_hidden_states=True)
            states[kernel] = out.hidden_states[2][0]
            inputs = image, out.hidden_states[2], torch.tensor([0.5]), image_ids, text_ids
            predictions[kernel] = transformer(*inputs, return_dict=False)[0]
    a, b = states["sdpa"], states["eager"]
    places = ((a - b).norm(dim=-1) / b.norm(dim=-1)).tolist()
    a, b = predictions["sdpa"], predictions["eager"]
    return places, ((a - b).norm() / b.norm()).item()


show = lambda places: [f"{x:.0e}" for x in places]
left, left_picture = both([0, 0, 0, 7, 8, 9], [0, 0, 0, 1, 1, 1])
right, right_picture = both([7, 8, 9, 0, 0, 0], [1, 1, 1, 0, 0, 0])
print(f"padded left:  places {show(left)}, FLUX.2's prediction {left_picture:.0e}")
print(f"padded right: places {show(right)}, FLUX.2's prediction {right_picture:.0e}")
expect(min(left[:3]) > 0.1, "padded places at the left differ by the kernel")
expect(max(left[3:]) < 1e-5, "real tokens do not")
expect(max(right) < 1e-5 and right_picture < 1e-5, "padded at the right, nothing differs")
expect(left_picture > 1e-4, "a transformer that does not mask the padding predicts something else")
PY
