"""What a whole pipeline does with one prompt, and what its parts hand to each other on the way."""

import functools

import torch
from common import HERE, under
from text import write_json


def watch(pipe, embedded: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Keeps what the pipeline's methods give to each other. The last call of the pipeline is in the dictionary.

    `embedded` names what `encode_prompt` returns.
    """
    kept: dict[str, torch.Tensor] = {}
    encode, step = pipe.encode_prompt, pipe.scheduler.step

    @functools.wraps(encode)
    def encode_prompt(*args, **kwargs):
        kept.clear()
        parts = encode(*args, **kwargs)
        kept.update((key, part.clone()) for key, part in zip(embedded, parts, strict=True) if part is not None)
        return parts

    # pipelines look at the signature of `step` to see what it takes
    @functools.wraps(step)
    def step_and_keep(prediction, t, latents, *args, **kwargs):
        i = sum(key.startswith("step.") for key in kept)
        if i == 0:
            kept["noise"] = latents.clone()
        out = step(prediction, t, latents, *args, **kwargs)
        kept[f"prediction.{i}"], kept[f"step.{i}"] = prediction.clone(), out[0].clone()
        return out

    pipe.encode_prompt, pipe.scheduler.step = encode_prompt, step_and_keep
    return kept


def goldens(pipe, name: str, common: dict, cases: dict[str, dict], embedded: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """One prompt, one picture. Writes the arguments of all `cases` to `<name>.cases.json`."""
    kept = watch(pipe, embedded)
    out: dict[str, torch.Tensor] = {}
    for key, case in cases.items():
        cases[key] = case = {**common, "seed": 42, **case}
        arguments = {k: v for k, v in case.items() if k != "seed"}
        for kind in ("latent", "pt", "pil"):
            generator = torch.Generator("cpu").manual_seed(case["seed"])
            images = pipe(**arguments, generator=generator, output_type=kind).images
            if kind == "pil":
                images = torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8)
                images = images.reshape(1, case["height"], case["width"], 3)
            out[f"pipeline.{key}.{kind if kind != 'pil' else 'u8'}"] = images
        out |= under(f"pipeline.{key}", kept)
        out[f"pipeline.{key}.sigmas"] = pipe.scheduler.sigmas
        out[f"pipeline.{key}.timesteps"] = pipe.scheduler.timesteps
    write_json(HERE / f"{name}.cases.json", cases)
    return out
