//! The text encoders against transformers, layer by layer.

use burn::tensor::{Device, FloatDType};
use serde::de::DeserializeOwned;
use xdit_core::checkpoint::Loader;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::error::ModelError;
use xdit_models::text::bert::{Bert, BertConfig};
use xdit_models::text::clip::{ClipText, ClipTextConfig};
use xdit_models::text::t5::{T5Config, T5Encoder};
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

/// Of each text of a batch, the tokens that are not padding.
fn seen(golden: &Golden, key: &str) -> Vec<Vec<bool>> {
    let mask = golden.values(key);
    mask.chunks(golden.dims(key)[1]).map(|row| row.iter().map(|seen| *seen != 0.0).collect()).collect()
}

#[track_caller]
fn check_bert(name: &str) {
    let golden = Golden::open(name);
    let bert: Bert = load(name, "text_encoder", Bert::UNUSED, |loader, config: &BertConfig| Bert::load(loader, config));
    let texts: Vec<String> =
        golden.keys().iter().filter_map(|key| Some(key.strip_prefix("mask.bert.")?.into())).collect();
    assert!(texts.len() > 10);
    for text in texts {
        let mask = seen(&golden, &format!("mask.bert.{text}"));
        let got = bert.forward_each(&golden.ids(&format!("ids.bert.{text}")), Some(&mask), |i, hidden| {
            let key = format!("bert.{text}.hidden.{i}");
            if golden.has(&key) {
                println!("{key}: {:.1e}", assert_rel_l2(hidden.clone(), golden.tensor(&key), TOLERANCE));
            }
        });
        let last = golden.tensor(&format!("bert.{text}.last"));
        println!("{name} bert {text}: {:.1e}", assert_rel_l2(got, last, TOLERANCE));
    }
}

#[track_caller]
fn check_mt5(name: &str) {
    let golden = Golden::open(name);
    let t5: T5Encoder =
        load(name, "text_encoder_2", T5Encoder::UNUSED, |loader, config: &T5Config| T5Encoder::load(loader, config));
    for text in ["plain", "chinese", "empty", "long"] {
        let mask = seen(&golden, &format!("mask.t5.{text}"));
        let got = t5.forward_each(&golden.ids(&format!("ids.t5.{text}")), Some(&mask), |i, hidden| {
            let key = format!("t5.{text}.hidden.{i}");
            if golden.has(&key) {
                println!("{key}: {:.1e}", assert_rel_l2(hidden.clone(), golden.tensor(&key), TOLERANCE));
            }
        });
        let last = golden.tensor(&format!("t5.{text}.last"));
        println!("{name} mt5 {text}: {:.1e}", assert_rel_l2(got, last, TOLERANCE));
    }
}

/// The two encoders of Stable Diffusion 3, which project what they pool; another activation, another padding.
#[track_caller]
fn check_projected_clip(name: &str, component: &str, kind: &str) {
    let golden = Golden::open(name);
    let clip: ClipText = load(name, component, &["position_ids"], |loader, config: &ClipTextConfig| {
        ClipText::load_with_projection(loader, config)
    });
    for key in golden.keys() {
        let Some(text) = key.strip_prefix(&format!("{kind}.")).and_then(|key| key.strip_suffix(".text_embeds")) else {
            continue;
        };
        let got = clip.forward(&golden.ids(&format!("ids.{kind}.{text}")));
        assert_rel_l2(got.pooled, golden.tensor(&key), TOLERANCE);
        for (i, hidden) in got.hidden_states.into_iter().enumerate() {
            let key = format!("{kind}.{text}.hidden.{i}");
            if golden.has(&key) {
                assert_rel_l2(hidden, golden.tensor(&key), TOLERANCE);
            }
        }
    }
}

#[test]
fn clip_with_projection() {
    for name in ["sd3", "sd35"] {
        check_projected_clip(name, "text_encoder", "clip");
        check_projected_clip(name, "text_encoder_2", "clip_2");
    }
}

/// PixArt's, which does not look at padding.
#[test]
fn masked_t5() {
    for name in ["pixart-alpha", "pixart-sigma"] {
        let golden = Golden::open(name);
        let t5: T5Encoder =
            load(name, "text_encoder", T5Encoder::UNUSED, |loader, config: &T5Config| T5Encoder::load(loader, config));
        for text in ["plain", "long"] {
            let seen = seen(&golden, &format!("t5.{text}.mask"));
            let got = t5.forward(&golden.ids(&format!("ids.t5.{text}")), Some(&seen));
            assert_rel_l2(got, golden.tensor(&format!("t5.{text}.last")), TOLERANCE);
        }
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

#[test]
fn bert_alone() {
    check_bert("hunyuan-v11");
}

#[test]
fn bert_in_a_model_with_heads() {
    check_bert("hunyuan-v12");
}

#[test]
fn mt5_v11() {
    check_mt5("hunyuan-v11");
}

#[test]
fn mt5_v12() {
    check_mt5("hunyuan-v12");
}

/// Texts of a batch have masks of their own.
#[test]
fn bert_does_not_mix_texts() {
    let golden = Golden::open("hunyuan-v11");
    let bert: Bert =
        load("hunyuan-v11", "text_encoder", Bert::UNUSED, |loader, config: &BertConfig| Bert::load(loader, config));
    let both = |what: &str| ["plain", "mixed"].map(|text| format!("{what}.bert.{text}"));
    let ids = both("ids").map(|key| golden.ids(&key)).concat();
    let got = bert.forward(&ids, Some(&both("mask").map(|key| seen(&golden, &key)).concat()));
    for (i, text) in ["plain", "mixed"].into_iter().enumerate() {
        assert_rel_l2(got.clone().narrow(0, i, 1), golden.tensor(&format!("bert.{text}.last")), TOLERANCE);
    }
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
