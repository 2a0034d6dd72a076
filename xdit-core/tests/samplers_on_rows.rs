//! A sampler steps any part of the rows: bands one after the other, each with its own history, give the bits that all
//! rows at once give. PipeFusion steps one patch at a time on this.

use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use serde_json::{Value, json};
use xdit_core::sampler::{Flow, History, SUPPORTED, Tokens, from_config};

const ROWS: usize = 12;

/// Values that a seed determines.
fn noise(seed: u64) -> Tensor<3> {
    let values = xdit_core::noise::TorchGenerator::seeded(seed).randn(ROWS * 4);
    Tensor::from_data(TensorData::new(values, [1, ROWS, 4]), &Device::flex())
}

fn bits(x: Tensor<3>) -> Vec<u32> {
    x.into_data().try_to_vec::<f32>().expect("f32").into_iter().map(f32::to_bits).collect()
}

/// Configurations that may or may not work, of every class.
fn config() -> impl Strategy<Value = Value> {
    let one_of = |names: &'static [&'static str]| prop::sample::select(names);
    let training = (
        one_of(&["linear", "scaled_linear", "squaredcos_cap_v2"]),
        one_of(&["epsilon", "sample", "v_prediction"]),
        one_of(&["linspace", "leading", "trailing"]),
        prop_oneof![Just(1000_usize), 1_usize..80],
        any::<bool>(),
        0_usize..3,
    );
    let solver = (
        one_of(&["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]),
        one_of(&["midpoint", "heun"]),
        0_usize..5,
        one_of(&["zero", "sigma_min"]),
        0_usize..5,
        one_of(&["fixed_small", "fixed_small_log", "fixed_large"]),
    );
    let numbers = prop_oneof![
        4 => Just((0.00085, 0.012)),
        1 => (any::<f64>(), any::<f64>()),
        1 => (-1.0..2.0, -1.0..2.0),
    ];
    (one_of(SUPPORTED), training, solver, any::<[bool; 4]>(), numbers).prop_map(
        |(class, training, solver, flags, (start, end))| {
            let (schedule, prediction, spacing, n_train, zero_snr, offset) = training;
            let (algorithm, kind, order, last, respacing, variance) = solver;
            json!({
                "_class_name": class, "beta_schedule": schedule, "prediction_type": prediction,
                "timestep_spacing": spacing, "num_train_timesteps": n_train, "rescale_betas_zero_snr": zero_snr,
                "steps_offset": offset, "algorithm_type": algorithm, "solver_type": kind, "solver_order": order,
                "final_sigmas_type": last, "use_karras_sigmas": respacing == 1, "use_exponential_sigmas": respacing == 2,
                "use_beta_sigmas": respacing == 3, "variance_type": if class == "DDPMScheduler" { json!(variance) } else { json!(null) },
                "lower_order_final": flags[0], "euler_at_final": flags[1], "clip_sample": flags[2],
                "set_alpha_to_one": flags[3], "beta_start": start, "beta_end": end, "shift": start.abs() + 1.0,
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn bands_are_the_whole(config in config(), n_steps in 1_usize..30, cuts in prop::collection::btree_set(1..ROWS, 0..4)) {
        let class = config["_class_name"].as_str().expect("a class");
        let Ok(sampler) = from_config(class, &config, n_steps, Flow { sigmas: None, n_tokens: ROWS }) else { return Ok(()) };
        let mut edges: Vec<usize> = cuts.into_iter().collect();
        edges.insert(0, 0);
        edges.push(ROWS);

        let mut whole = noise(0) * sampler.initial_scale();
        let mut history = History::default();
        let mut bands: Vec<_> =
            edges.windows(2).map(|e| (whole.clone().narrow(1, e[0], e[1] - e[0]), History::default(), e[0])).collect();
        for i in 0..sampler.timesteps().len() {
            let (prediction, new) = (noise(2 * i as u64 + 1), noise(2 * i as u64 + 2));
            let new = sampler.needs_noise(i).then_some(new);
            let input = sampler.model_input(i, whole.clone());
            whole = sampler.step(i, Tokens { latents: whole, prediction: prediction.clone(), noise: new.clone() }, &mut history);
            for (band, history, from) in &mut bands {
                let n = band.dims()[1];
                let cut = |x: Tensor<3>| x.narrow(1, *from, n);
                prop_assert_eq!(bits(sampler.model_input(i, band.clone())), bits(cut(input.clone())));
                let tokens = Tokens { latents: band.clone(), prediction: cut(prediction.clone()), noise: new.clone().map(cut) };
                *band = sampler.step(i, tokens, history);
            }
        }
        let together = Tensor::cat(bands.into_iter().map(|(band, ..)| band).collect(), 1);
        prop_assert_eq!(bits(together), bits(whole));
    }

    /// Sensible numbers never lead to a value that is none.
    #[test]
    fn latents_stay_finite(config in config(), n_steps in 1_usize..60) {
        let mut config = config;
        for (key, value) in [("beta_start", json!(0.00085)), ("beta_end", json!(0.012)), ("num_train_timesteps", json!(1000))] {
            config[key] = value;
        }
        let class = config["_class_name"].as_str().expect("a class");
        let Ok(sampler) = from_config(class, &config, n_steps, Flow { sigmas: None, n_tokens: ROWS }) else { return Ok(()) };
        let mut x = noise(0) * sampler.initial_scale();
        let mut history = History::default();
        for i in 0..sampler.timesteps().len() {
            let noise_i = sampler.needs_noise(i).then(|| noise(7));
            x = sampler.step(i, Tokens { latents: x, prediction: noise(i as u64 + 1), noise: noise_i }, &mut history);
        }
        let values = x.into_data().try_to_vec::<f32>().expect("f32");
        prop_assert!(values.iter().all(|x| x.is_finite()), "{config}: {values:?}");
    }
}
