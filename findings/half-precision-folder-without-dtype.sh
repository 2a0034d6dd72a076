#!/usr/bin/env bash
# A pipeline saved in half precision does not run when it is opened without a dtype (diffusers 0.42.1 with transformers 5.23.0)
#
# Expected: without `torch_dtype` everything is f32, as models of diffusers are then; or everything has the files' dtype. The
#   pipeline's `dtype` says which.
# Seen: components of diffusers become f32, those of transformers keep the files' dtype (version 5 made "auto" its default). A
#   folder of f16 files gives f16 text encoders and an f32 transformer, `pipe.dtype` says f16, and the first prompt ends in an
#   error about Half and float, as the latents take the text's dtype.
# So: "the default dtype" of a pipeline is no number that can be copied from upstream: it differs by component, and no f32
#   reference comes from a half-precision folder unless the dtype is named.
# xdit: one dtype for all components, by device or `--dtype`, whatever the files hold; golden data names its dtype.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv} # optional: an absolute path of a venv to keep between runs
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.15.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 \
    safetensors==0.8.0 huggingface_hub==2.4.0 sentencepiece==0.2.3 protobuf==7.36.2
cd "$work"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 OMP_NUM_THREADS=1
export DIFFUSERS_VERBOSITY=error TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
"$venv/bin/python" - <<'PY'
import os
import sys
import sentencepiece
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

with open("text", "w") as text:
    text.write("a large red circle on a yellow background\nthe quick brown fox jumps over the lazy dog\n" * 50)
sentencepiece.SentencePieceTrainer.train(input="text", model_prefix="spiece", vocab_size=60, pad_id=0, eos_id=1, unk_id=2,
    bos_id=-1, hard_vocab_limit=False, minloglevel=2)
os.mkdir("tokenizer")
os.rename("spiece.model", "tokenizer/spiece.model")
t5 = T5Config(vocab_size=200, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
transformer = PixArtTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
    cross_attention_dim=16, caption_channels=16, sample_size=8)
pipeline = PixArtSigmaPipeline(T5Tokenizer.from_pretrained("tokenizer", extra_ids=0), T5EncoderModel(t5),
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4), transformer, DPMSolverMultistepScheduler())
pipeline.to(torch.float16).save_pretrained("folder")


def draw(**options):
    pipeline = PixArtSigmaPipeline.from_pretrained("folder", **options)
    pipeline.set_progress_bar_config(disable=True)
    dtypes = [str(pipeline.components[name].dtype) for name in ("text_encoder", "transformer", "vae")]
    print(f"{options or 'no dtype given'}: encoder, transformer, vae are {dtypes}, the pipeline says {pipeline.dtype}")
    try:
        pipeline("a red circle", height=8, width=8, num_inference_steps=1, use_resolution_binning=False, output_type="latent")
    except RuntimeError as error:
        return dtypes, str(error)
    return dtypes, None


dtypes, error = draw()
print("drawing:", error)
expect(dtypes == ["torch.float16", "torch.float32", "torch.float32"], "the encoder has the file's dtype, the rest is f32")
expect(error is not None, "the first prompt is an error")
for dtype in (torch.float32, torch.float16):
    expect(draw(torch_dtype=dtype)[1] is None, f"with torch_dtype={dtype} it draws")
PY
