#!/usr/bin/env bash
# Saving the same tensors and metadata twice gives different bytes (safetensors 0.8.0)
#
# Expected: one content, one file: names are sorted, offsets follow, so a hash of the file identifies the content.
# Seen: tensors are in a fixed order (by dtype, then name, whatever order they are given in), but `__metadata__` comes in a
#   random order each time. From two entries on, the same call gives files that differ; with none or one they are the same. The
#   order of a caller's dict is lost in both parts.
# So: hashes of files can't be compared to see whether a conversion or a re-save changed anything; compare the header as JSON
#   and the rest as bytes. Byte tests of a writer need at most one entry.
# xdit: writes the header of its latents itself (`--output-type latent`), with sorted metadata: equal runs give equal files.
#   The Rust crate's writer takes a hash map and does the same as described here. Other tests compare tensors, not files.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv} # optional: an absolute path of a venv to keep between runs
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check \
    safetensors==0.8.0 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 OMP_NUM_THREADS=1
export DIFFUSERS_VERBOSITY=error TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
"$venv/bin/python" - <<'PY'
import hashlib
import json
import sys
import numpy as np
from safetensors.numpy import load, save

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)


def parts(file):
    n = int.from_bytes(file[:8], "little")
    return file[8 : 8 + n], file[8 + n :]


tensors = {"b": np.zeros(3, np.float16), "a": np.ones(5, np.float16), "z": np.ones(2, np.float32)}
for n in (0, 1, 8):
    metadata = {f"key{i}": str(i) for i in range(n)} or None
    files = [save(tensors, metadata) for _ in range(20)]
    hashes = {hashlib.sha256(file).hexdigest() for file in files}
    headers = [json.loads(parts(file)[0]) for file in files]
    print(f"{n} entries: {len(hashes)} different files of 20")
    expect((len(hashes) > 1) == (n > 1), "files differ" if n > 1 else "all files are the same")
    expect(all(header == headers[0] for header in headers), "as JSON the headers are equal")
    expect(len({parts(file)[1] for file in files}) == 1, "the tensors' bytes are equal")
order = [name for name in headers[0] if name != "__metadata__"]
print("order in the file:", order, "given:", list(tensors))
expect(order == ["z", "a", "b"], "tensors are ordered by dtype, then by name")
expect(list(json.loads(parts(save(dict(sorted(tensors.items()))))[0])) == order, "in whatever order they are given")
PY
