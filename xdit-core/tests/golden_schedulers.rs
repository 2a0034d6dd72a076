//! DDIM, DDPM, DPM-Solver and Euler against diffusers: the same predictions and noise, step by step.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use serde_json::Value;
use xdit_core::sampler::{Ddim, Flow, History, Sampler, Tokens, from_config};
use xdit_testing::golden::{self, Golden, rel_l2};

/// Scalars that upstream computes in f32, with other functions of the same name; h, the difference of two logarithms,
/// carries most of it.
const TOLERANCE: f64 = 3e-6;

fn open(config: &Value, n_steps: usize) -> Box<dyn Sampler> {
    match config.get("eta") {
        Some(eta) => {
            let config = serde_json::from_value(config.clone()).expect("a configuration");
            Box::new(Ddim::new(&config, n_steps, eta.as_f64().expect("a number") as f32).expect("a sampler"))
        }
        None => {
            let class = config["_class_name"].as_str().expect("a class");
            from_config(class, config, n_steps, Flow::default()).unwrap_or_else(|e| panic!("{config}: {e}"))
        }
    }
}

fn norm(x: &Tensor<3>) -> f64 {
    f64::from((x.clone() * x.clone()).sum().into_scalar::<f32>()).sqrt()
}

#[test]
fn runs_are_upstreams() {
    let golden = Golden::open("schedulers");
    let cases = std::fs::read_to_string(golden::dir().join("schedulers.cases.json")).expect("cases");
    let cases: BTreeMap<String, Value> = serde_json::from_str(&cases).expect("cases");
    let (predictions, noises) = (golden.tensor::<4>("predictions"), golden.tensor::<4>("noises"));
    let row = |x: &Tensor<4>, i: usize| x.clone().narrow(0, i, 1).squeeze_dim::<3>(0);
    let (mut n, mut worst, mut wrong) = (0, 0.0_f64, Vec::new());
    for (key, config) in cases {
        for n_steps in [1, 2, 3, 5, 10, 16, 24] {
            let key = format!("{key}.{n_steps}");
            if !golden.has(&format!("{key}.out")) {
                continue;
            }
            let sampler = open(&config, n_steps);
            let timesteps: Vec<f64> = sampler.timesteps().iter().map(|t| f64::from(*t)).collect();
            let want = golden.values(&format!("{key}.timesteps"));
            // those between two of the training's come from f32 logarithms
            let same = |(a, b): (&f64, &f64)| (a - b).abs() <= 5e-7 * b.abs();
            if timesteps.len() != want.len() || !timesteps.iter().zip(&want).all(same) {
                wrong.push(format!("{key}: timesteps {timesteps:?}, not {want:?}"));
                continue;
            }
            let want = golden.tensor::<4>(&format!("{key}.out"));
            let mut history = History::default();
            let mut x = golden.tensor::<3>("start") * sampler.initial_scale();
            for i in 0..timesteps.len() {
                if golden.has(&format!("{key}.inputs")) {
                    let inputs = golden.tensor::<4>(&format!("{key}.inputs"));
                    assert!(rel_l2(sampler.model_input(i, x.clone()), row(&inputs, i)) < TOLERANCE, "{key}");
                }
                let noise = sampler.needs_noise(i).then(|| row(&noises, i));
                let before = norm(&x);
                x = sampler.step(i, Tokens { latents: x, prediction: row(&predictions, i), noise }, &mut history);
                // where a step takes most of the latents away, their rounding is left
                let error = rel_l2(x.clone(), row(&want, i)) / (before / norm(&x)).max(1.0);
                worst = worst.max(error);
                if error > TOLERANCE {
                    wrong.push(format!("{key}: step {i}: {error:.1e}"));
                    break;
                }
                // each step by itself: errors do not add up
                x = row(&want, i);
            }
            n += 1;
        }
    }
    println!("{n} runs, worst step {worst:.1e}");
    assert!(wrong.is_empty(), "{} of {n}:\n{}", wrong.len(), wrong.join("\n"));
}
