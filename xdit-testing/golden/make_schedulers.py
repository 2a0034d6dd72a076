"""What diffusers' schedulers make of the same predictions and the same noise, in many configurations.

    pip install -r xdit-testing/golden/requirements.txt
    python xdit-testing/golden/make_schedulers.py
"""

import common
import diffusers
import torch
from common import HERE, save
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm, scheduling_dpmsolver_multistep
from text import write_json

STEPS = (1, 2, 3, 5, 10, 16, 24)
# HunyuanDiT's and PixArt's as they are published; Stable Diffusion's betas; the cosine's
HUNYUAN = {"beta_start": 0.00085, "beta_end": 0.03, "beta_schedule": "scaled_linear", "steps_offset": 1,
           "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False}
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SPACINGS = {name: {"timestep_spacing": name} for name in ("linspace", "leading", "trailing")}
KINDS = {name: {"prediction_type": name} for name in ("epsilon", "sample", "v_prediction")}
SIGMAS = {name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")}

DDIM = {
    "plain": {}, "hunyuan": HUNYUAN, "cosine": COSINE, "last": {"set_alpha_to_one": False}, "offset": {"steps_offset": 1},
    "wide": {"clip_sample_range": 2.5}, "zero_snr": {**HUNYUAN, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "noisy": {**LATENT, "eta": 0.7}, **SPACINGS, **KINDS,
}
DDPM = {
    "plain": {}, "hunyuan": HUNYUAN, "hunyuan_12": {**HUNYUAN, "beta_end": 0.018}, "cosine": COSINE,
    "zero_snr": {**HUNYUAN, "rescale_betas_zero_snr": True}, **SPACINGS, **KINDS,
    **{name: {"variance_type": name} for name in ("fixed_small_log", "fixed_large")},
    "betas": {"trained_betas": [0.01 + 0.002 * i for i in range(40)], "num_train_timesteps": 40, "clip_sample": False},
}
DPM = {
    "plain": {}, "latent": LATENT, "cosine": {**COSINE, "lambda_min_clipped": -5.1}, "offset": {"timestep_spacing": "leading", "steps_offset": 1},
    "zero_snr": {**LATENT, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "not_lower": {"lower_order_final": False}, "euler_at_final": {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
    "sigma_min": {"final_sigmas_type": "sigma_min"}, "lu": {**LATENT, "use_lu_lambdas": True}, **SPACINGS, **KINDS,
    **{name: {**LATENT, **option} for name, option in SIGMAS.items()}, "karras_cosine": {**COSINE, "use_karras_sigmas": True},
    **{f"{algorithm}_{order}_{solver}": {
        **LATENT, "algorithm_type": algorithm, "solver_order": order, "solver_type": solver,
        "final_sigmas_type": "zero" if algorithm.endswith("++") else "sigma_min"}
       for algorithm in ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
       for order, solver in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"))
       # not there upstream
       if (algorithm, order) != ("sde-dpmsolver", 3)},
}
EULER = {
    "plain": {}, "latent": LATENT, "cosine": COSINE, "offset": {"timestep_spacing": "leading", "steps_offset": 1},
    "log_linear": {**LATENT, "interpolation_type": "log_linear"}, "sigma_min": {"final_sigmas_type": "sigma_min"},
    "zero_snr": {**LATENT, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "karras_bounds": {**LATENT, "use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 12.0},
    **SPACINGS, **KINDS, **{name: {**LATENT, **option} for name, option in SIGMAS.items()},
}
ALL = {"DDIMScheduler": DDIM, "DDPMScheduler": DDPM, "DPMSolverMultistepScheduler": DPM, "EulerDiscreteScheduler": EULER}


def goldens() -> tuple[dict, dict[str, torch.Tensor]]:
    torch.manual_seed(11)
    start, predictions, noises = torch.randn(1, 6, 4), torch.randn(24, 1, 6, 4), torch.randn(24, 1, 6, 4)
    out = {"start": start, "predictions": predictions, "noises": noises}
    drawn = iter(())
    for module in (scheduling_ddim, scheduling_ddpm, scheduling_dpmsolver_multistep):
        module.randn_tensor = lambda *_args, **_kwargs: next(drawn)
    cases = {}
    for name, variants in ALL.items():
        for variant, options in variants.items():
            options = dict(options)
            eta = {"eta": options.pop("eta")} if "eta" in options else {}
            key = f"{name.removesuffix('Scheduler')}.{variant}"
            cases[key] = {"_class_name": name, **options, **eta}
            for steps in STEPS:
                scheduler = getattr(diffusers, name).from_config(options)
                scheduler.set_timesteps(steps)
                # otherwise it looks for the first timestep among all, and starts too late where two are equal
                if hasattr(scheduler, "set_begin_index"):
                    scheduler.set_begin_index(0)
                # by the step: a step without noise takes none away
                x, xs, inputs = start * scheduler.init_noise_sigma, [], []
                for i, t in enumerate(scheduler.timesteps):
                    drawn = iter((noises[i],))
                    inputs.append(scheduler.scale_model_input(x, t))
                    x = scheduler.step(predictions[i], t, x, return_dict=False, **eta)[0]
                    xs.append(x)
                # a last step that divides by no noise, in the order that was asked for: here it is refused
                if not torch.stack(xs).isfinite().all():
                    continue
                out[f"{key}.{steps}.timesteps"] = scheduler.timesteps
                out[f"{key}.{steps}.out"] = torch.stack(xs)
                if name == "EulerDiscreteScheduler":
                    out[f"{key}.{steps}.inputs"] = torch.stack(inputs)
    return cases, out


if __name__ == "__main__":
    common.deterministic()
    cases, tensors = goldens()
    write_json(HERE / "schedulers.cases.json", cases)
    save(tensors, "schedulers")
