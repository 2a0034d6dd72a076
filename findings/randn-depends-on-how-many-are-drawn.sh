#!/usr/bin/env bash
# The first value of a seed depends on how many are drawn, and on the tensor's memory layout (torch 2.15.0, CPU)
#
# Expected: one seed, one stream: `torch.randn(n)` is the beginning of `torch.randn(m)` for n < m.
# Seen: from 16 values on they are made in blocks of 16; below, one by one from f64: nothing in common. Where 16 does not divide
#   n, the last 16 are drawn again: `randn(17)` shares one value with `randn(32)`, the first. A tensor that is not contiguous
#   (channels_last, a transposed view; `randn_like` keeps the layout) is filled one by one, however large. f64 is a stream of
#   its own, f16 and bf16 are the f32 values, rounded. Of a seed only the low 32 bits count: 0 and 2**32 draw the same.
# So: noise can't be drawn in parts, by rank or by tile, and put together; latents of sizes that 16 does not divide need the
#   rule of the tail. Two seeds of 64 bits may be the same picture.
# xdit: the same bits, the tail, the short draws and the 32 bits included, always drawn whole; bands are cut from it afterwards.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv} # optional: an absolute path of a venv to keep between runs
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.15.0 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 OMP_NUM_THREADS=1
export DIFFUSERS_VERBOSITY=error TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
"$venv/bin/python" - <<'PY'
import sys
import torch

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)


def draw(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def shared(a, b):
    n = min(len(a), len(b))
    return int((a[:n] == b[:n]).sum())


whole = draw(64)
for n in (15, 16, 17, 40, 48):
    print(f"randn({n}) shares {shared(draw(n), whole)} values with randn(64)")
expect(shared(draw(15), whole) == 0, "fewer than 16 are another stream")
expect(shared(draw(16), whole) == 16 and shared(draw(48), whole) == 48, "multiples of 16 are the beginning")
expect(shared(draw(17), whole) == 1 and shared(draw(40), whole) == 24, "otherwise the last 16 are drawn anew")

picture = torch.empty(1, 16, 8, 8)
fill = lambda x: x.normal_(generator=torch.Generator().manual_seed(0)).contiguous().flatten()
plain, last = fill(picture.clone()), fill(picture.to(memory_format=torch.channels_last))
print(f"1 x 16 x 8 x 8 in channels_last shares {shared(plain.sort().values, last.sort().values)} of 1024 values, sorted")
expect(torch.equal(plain, draw(1024)) and shared(plain.sort().values, last.sort().values) == 0, "channels_last is another stream")
expect(torch.equal(draw(64, dtype=torch.bfloat16), whole.bfloat16()), "bf16 is f32, rounded")
expect(shared(draw(64, dtype=torch.float64).float(), whole) == 0, "f64 is another stream")
expect(torch.equal(draw(64, seed=2**32 + 7), draw(64, seed=7)), "seeds 2**32 + 7 and 7 are one")
expect(torch.equal(draw(64, seed=-1), draw(64, seed=2**32 - 1)), "and so are -1 and 2**32 - 1")
PY
