"""Sigmas and steps of the flow-matching Euler scheduler, as the pipeline asks for them and as its options change them."""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

VARIANTS = {
    "own": {},
    "shift3": {"use_dynamic_shifting": False, "shift": 3.0},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "linear": {"time_shift_type": "linear"},
    "dynamic_linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "terminal": {"shift_terminal": 0.1},
    "inverted": {"invert_sigmas": True},
}
# steps, image tokens
SIZES = ((1, 256), (3, 24), (4, 15), (4, 4096), (28, 4096), (50, 1024))


def pipeline_mu(config, tokens: int) -> float:
    return calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)


def goldens(config) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    # `from_config` drops what this list names, the options below too
    config = {key: value for key, value in config.items() if key != "_use_default_values"}
    for variant, options in VARIANTS.items():
        for steps, tokens in SIZES:
            # from 1 to a terminal sigma in one step is zero divided by zero
            if variant == "terminal" and steps == 1:
                continue
            scheduler = FlowMatchEulerDiscreteScheduler.from_config({**config, **options})
            assert options.items() <= dict(scheduler.config).items(), variant
            mu = pipeline_mu(scheduler.config, tokens)
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
            key = f"schedule.{variant}.{steps}.{tokens}"
            out[f"{key}.mu"] = torch.tensor(mu, dtype=torch.float64)
            out[f"{key}.sigmas"], out[f"{key}.timesteps"] = scheduler.sigmas, scheduler.timesteps
            # without sigmas: the scheduler spaces them itself, in f64
            scheduler.set_timesteps(steps, mu=mu)
            out[f"{key}.even"] = scheduler.sigmas

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4), mu=pipeline_mu(scheduler.config, 15))
    out["step.start"] = x = torch.randn(1, 15, 64)
    for i, t in enumerate(scheduler.timesteps):
        prediction = torch.randn(1, 15, 64)
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
        out[f"step.{i}.prediction"], out[f"step.{i}.out"] = prediction, x
    return out
