//! The text encoders against transformers, layer by layer.

use burn::tensor::{Device, FloatDType};
use serde::de::DeserializeOwned;
use xdit_core::checkpoint::Loader;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::clip::{ClipText, ClipTextConfig};
use xdit_models::error::ModelError;
use xdit_models::t5::{T5Config, T5Encoder};
use xdit_testing::golden::{self, Golden, assert_rel_l2};

/// f32 on both sides, sums in another order.
const TOLERANCE: f64 = 1e-5;

fn load<C: DeserializeOwned, M>(
    name: &str,
    component: &str,
    unused: &[&str],
    build: impl FnOnce(&Loader<'_>, &C) -> Result<M, ModelError>,
) -> M {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join(name))).unwrap();
    let weights = folder.weights(component, None).unwrap();
    let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
    let model = build(&loader, &folder.config(component, "config.json").unwrap()).unwrap();
    assert_eq!(loader.finish(unused).unwrap().unused, [""; 0]);
    model
}

#[track_caller]
fn check_clip(name: &str) {
    let golden = Golden::open(name);
    let clip: ClipText =
        load(name, "text_encoder", ClipText::UNUSED, |loader, config: &ClipTextConfig| ClipText::load(loader, config));
    for text in ["plain", "long"] {
        let got = clip.forward(&golden.ids(&format!("ids.clip.{text}")));
        let want = |key: String| golden.tensor(&format!("clip.{text}.{key}"));
        for (i, hidden) in got.hidden_states.into_iter().enumerate() {
            let error = assert_rel_l2(hidden, want(format!("hidden.{i}")), TOLERANCE);
            println!("{name} clip {text} {i}: {error:.1e}");
        }
        println!("last {:.1e}", assert_rel_l2(got.last_hidden_state, want("last".into()), TOLERANCE));
        let pooled = golden.tensor(&format!("clip.{text}.pooled"));
        println!("pooled {:.1e}", assert_rel_l2(got.pooled, pooled, TOLERANCE));
    }
}

#[track_caller]
fn check_t5(name: &str) {
    let golden = Golden::open(name);
    let t5: T5Encoder =
        load(name, "text_encoder_2", T5Encoder::UNUSED, |loader, config: &T5Config| T5Encoder::load(loader, config));
    for text in ["plain", "long"] {
        let want = |i: usize| golden.tensor(&format!("t5.{text}.hidden.{i}"));
        let mut n = 0;
        let got = t5.forward_each(&golden.ids(&format!("ids.t5.{text}")), None, |i, hidden| {
            println!("{name} t5 {text} {i}: {:.1e}", assert_rel_l2(hidden.clone(), want(i), TOLERANCE));
            n += 1;
        });
        println!("last {:.1e}", assert_rel_l2(got, want(n), TOLERANCE));
    }
}

#[test]
fn clip_with_end_of_text_as_largest_id() {
    check_clip("flux-dev");
}

#[test]
fn clip_with_end_of_text_by_its_id() {
    check_clip("flux-schnell");
}

#[test]
fn t5_dev() {
    check_t5("flux-dev");
}

#[test]
fn t5_schnell() {
    check_t5("flux-schnell");
}

/// Hidden padding is as no padding.
#[test]
fn t5_does_not_look_at_what_is_masked() {
    let golden = Golden::open("flux-dev");
    let t5: T5Encoder = load("flux-dev", "text_encoder_2", T5Encoder::UNUSED, |loader, config: &T5Config| {
        T5Encoder::load(loader, config)
    });
    let ids = golden.ids("ids.t5.plain");
    let n = ids[0].len();
    let seen = n / 2;
    let short = t5.forward(&[ids[0][..seen].to_vec()], None);
    let mask = [(0..n).map(|i| i < seen).collect()];
    let long = t5.forward(&ids, Some(&mask));
    assert_rel_l2(long.narrow(1, 0, seen), short, TOLERANCE);
}
