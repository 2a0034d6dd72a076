#!/usr/bin/env bash
# FLUX in bf16 is told another time and another guidance than was asked for (diffusers 0.42.1)
#
# Expected: time and guidance are small f32 numbers that become sinusoids in f32, as SD3's are; bf16 is for weights and
#   activations.
# Seen: `FluxPipeline` casts the timestep to the latents' dtype, divides by 1000, and the transformer casts guidance and
#   multiplies both by 1000 again, all in bf16. Times above 512 land on multiples of 4 (999 and 1000 are one), and guidance 3.5,
#   the default, becomes 3504 instead of 3500; 3.5 and 3.501 are the same. The fastest sinusoid has period 6.28, so 4 units are
#   most of a turn. SD3's transformer gets its time in f32.
# So: two engines with equal weights in bf16 differ from the first step on if one keeps these scalars in f32. Compare in f32, or
#   round like this. Few-step schedules of "nice" sigmas (1, 0.75, 0.5, 0.25) hide it.
# xdit: keeps time and guidance in f32 in every dtype. That is closer to the f32 model, and in bf16 not diffusers' picture: a
#   tiny FLUX of random weights is 1.4 % from its f32 latents in bf16, diffusers' own 8.3 %.
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
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)

torch.manual_seed(0)
vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
flux = FluxTransformer2DModel(in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8), guidance_embeds=True)
sd3 = SD3Transformer2DModel(sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=32, pooled_projection_dim=8, pos_embed_max_size=8)
nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))


def seen(pipeline, embedder, dtype, **options):
    """What the embedder of a transformer gets at each step: time and, for FLUX, guidance."""
    calls = []
    keep = lambda _, args: calls.append([x.float().item() for x in args[:2] if x.numel() == 1])
    handle = embedder.register_forward_pre_hook(keep)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(dtype)
    text = dict(prompt_embeds=torch.zeros(1, 3, 8, dtype=dtype), pooled_prompt_embeds=torch.zeros(1, 8, dtype=dtype))
    pipeline(**text, **options, height=16, width=16, output_type="latent", generator=torch.Generator().manual_seed(0))
    handle.remove()
    return calls


pipeline = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, transformer=flux, **nothing)
run = dict(sigmas=[0.999, 0.9873, 0.3331], guidance_scale=3.5)
exact = seen(pipeline, flux.time_text_embed, torch.float32, **run)
rounded = seen(pipeline, flux.time_text_embed, torch.bfloat16, **run)
print("FLUX f32: ", exact)
print("FLUX bf16:", rounded)
expect(all(abs(g - 3500) < 1 for _, g in exact) and all(g == 3504 for _, g in rounded), "guidance 3.5 is told as 3.504 in bf16")
expect(abs(exact[0][0] - 999) < 0.01 and rounded[0][0] == 1000, "time 999 is told as 1000")
expect(abs(exact[1][0] - 987.3) < 0.01 and rounded[1][0] == 988, "time 987.3 is told as 988")

pipeline = StableDiffusion3Pipeline(transformer=sd3, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae,
    text_encoder_3=None, tokenizer_3=None, **nothing)
times = [t for t, *_ in seen(pipeline, sd3.time_text_embed, torch.bfloat16, sigmas=[0.999, 0.9873, 0.3331], guidance_scale=1.0)]
print("SD3 bf16: ", times)
expect(abs(times[0] - 999) < 0.01 and abs(times[1] - 987.3) < 0.01, "SD3 in bf16 gets the exact times")
PY
