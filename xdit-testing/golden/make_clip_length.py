"""Latents of pipelines whose tokenizers say how many tokens CLIP is shown, and on which side they are padded:
`clip-length.golden.safetensors`. The folders are those of other golden models with `tokenizer_config.json` changed."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from common import HERE, deterministic, save
from diffusers import FluxPipeline, StableDiffusion3Pipeline

CASES = {
    "flux": ("flux-dev", FluxPipeline, {"tokenizer": {"model_max_length": 10}}),
    "flux_left": ("flux-dev", FluxPipeline, {"tokenizer": {"padding_side": "left"}}),
    # the first tokenizer's counts for both
    "sd3": ("sd3", StableDiffusion3Pipeline, {"tokenizer": {"model_max_length": 10}}),
    "sd3_second": ("sd3", StableDiffusion3Pipeline, {"tokenizer_2": {"model_max_length": 10}}),
}


def main() -> None:
    deterministic()
    out = {}
    for name, (base, pipeline, changes) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            shutil.copytree(HERE / base, at, dirs_exist_ok=True)
            for tokenizer, keys in changes.items():
                path = at / tokenizer / "tokenizer_config.json"
                config = json.loads(path.read_text(encoding="utf-8"))
                path.write_text(json.dumps({**config, **keys}), encoding="utf-8")
            pipe = pipeline.from_pretrained(at)
            pipe.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(7)
            out[name] = pipe("a photo of a red cat on a very long and wide bridge", height=32, width=48,
                             num_inference_steps=2, guidance_scale=3.0, max_sequence_length=32, generator=generator,
                             output_type="latent").images
    save(out, "clip-length")


if __name__ == "__main__":
    main()
