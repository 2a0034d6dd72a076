#!/usr/bin/env bash
# The same prompt and seed give another PixArt picture if beautifulsoup4 and ftfy happen to be installed (diffusers 0.42.1)
#
# Expected: `clean_caption=True`, the default of PixArt's pipelines, cleans captions, or fails where it can't. Cleaning takes
#   out markup and addresses.
# Seen: without either package the cleaning is switched off with a warning, and the prompt is only put into small letters. With
#   both it is cleaned, twice, which changes ordinary prompts: brackets, "#1", a dash, "1920x1080", "sky.jpg" and long numbers
#   vanish. Both packages are optional, and other packages bring them in.
# So: a reference picture of PixArt depends on what is installed beside diffusers; compare with `clean_caption=False`.
# xdit: small letters and no cleaning, as diffusers does without the packages (docs/models.md); golden data is made without
#   them.
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
cat >prompts.py <<'PY'
import sys
from diffusers import PixArtSigmaPipeline
from diffusers.utils import is_bs4_available, is_ftfy_available


class Stop(Exception):
    pass


class Recorder:
    """In place of the tokenizer: keeps the text that it is to tokenize."""

    def __call__(self, text, **_options):
        self.text = text
        raise Stop


prompts = ["A photo of a castle", "A fox [detailed] #1 \"The Hunter\" - 1920x1080", "123456 stars over a lake, sky.jpg"]
pipeline = PixArtSigmaPipeline.__new__(PixArtSigmaPipeline)
PixArtSigmaPipeline.__init__(pipeline, tokenizer=None, text_encoder=None, vae=None, transformer=None, scheduler=None)
pipeline.tokenizer = Recorder()
print("bs4 and ftfy installed:", is_bs4_available() and is_ftfy_available(), file=sys.stderr)
for prompt in prompts:
    try:
        pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, device="cpu", clean_caption=True)
    except Stop:
        print(pipeline.tokenizer.text[0])
PY
"$venv/bin/python" -c 'import bs4' 2>/dev/null && { echo "the venv has bs4 already: use a fresh one"; exit 2; }
"$venv/bin/pip" install --quiet --disable-pip-version-check --target extra beautifulsoup4==4.14.2 ftfy==6.3.1
"$venv/bin/python" prompts.py >without.txt
PYTHONPATH=extra "$venv/bin/python" prompts.py >with.txt
diff --side-by-side --width=150 without.txt with.txt || true

expect() { # value, wanted, what
    if [ "$1" = "$2" ]; then echo "as described: $3"; else echo "CHANGED: $3: $1"; exit 1; fi
}
line() { sed -n "$1p" "$2"; }
expect "$(line 1 without.txt)" "$(line 1 with.txt)" "a plain prompt is the same with and without"
expect "$(line 2 without.txt)" 'a fox [detailed] #1 "the hunter" - 1920x1080' "without the packages, small letters only"
expect "$(line 2 with.txt)" 'a fox detailed "the hunter"' "with them, signs and the size are gone"
expect "$(line 3 with.txt)" 'stars over a lake' "and so are long numbers and file names"
