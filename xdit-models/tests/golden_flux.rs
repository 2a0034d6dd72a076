//! The Flux transformer against diffusers, block by block.

use burn::tensor::{Device, FloatDType, Tensor};
use xdit_attn::Local;
use xdit_core::checkpoint::Loader;
use xdit_core::dit::{Ctx, Dit, Inputs, TextEmbeddings};
use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::flux::{Flux, FluxConfig};
use xdit_testing::golden::{self, Golden, assert_rel_l2};

/// f32 sums in another order, through a handful of blocks.
const TOLERANCE: f64 = 1e-5;

#[track_caller]
fn check(name: &str, guidance: Option<f32>) {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join(name))).expect("a pipeline folder");
    let config: FluxConfig = folder.config("transformer", "config.json").expect("a configuration");
    let weights = folder.weights("transformer", None).expect("weights");
    let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
    let flux = Flux::load(&loader, &config).expect("a model");
    assert_eq!(loader.finish(&[]).expect("no tensor missing").unused, Vec::<String>::new());

    let golden = Golden::open(name);
    let get = |key: &str| golden.tensor::<3>(&format!("transformer.{key}"));
    let text =
        TextEmbeddings { txt: get("encoder_hidden_states"), pooled: golden.tensor("transformer.pooled_projections") };
    let positions: Vec<_> = (0..15).map(|i| [i / 3, i % 3]).collect();
    let places = flux.place(&positions, 9);
    // upstream repeats each angle for both channels of a pair, and puts the text's positions first
    for (i, table) in [places.txt.then(&places.img).cos, places.txt.then(&places.img).sin].into_iter().enumerate() {
        let want = golden.tensor::<2>(&format!("transformer.rope.{i}"));
        let [n, d] = want.dims();
        assert_rel_l2(table, want.reshape([n, d / 2, 2]).slice([0..n, 0..d / 2, 0..1]).squeeze_dim(2), 1e-7);
    }

    let inputs = Inputs { latents: get("hidden_states"), places: &places, time: 0.7, text: &text, guidance };
    let (mut x, cond) = flux.embed(inputs);
    assert_rel_l2(cond.temb.clone(), golden.tensor("transformer.temb"), TOLERANCE);
    assert_rel_l2(x.txt.clone(), get("txt"), TOLERANCE);
    assert_rel_l2(x.img.clone(), get("img"), TOLERANCE);
    for i in 0..flux.spec().n_blocks {
        x = flux.block(&mut Ctx { attn: &mut Local }, i, x, &cond).expect("one device cannot fail");
        assert_rel_l2(x.txt.clone(), get(&format!("block.{i}.0")), TOLERANCE);
        assert_rel_l2(x.img.clone(), get(&format!("block.{i}.1")), TOLERANCE);
    }
    assert_rel_l2(flux.head(x, &cond), get("out"), TOLERANCE);
}

#[test]
fn with_guidance() {
    check("flux-dev", Some(3.5));
}

#[test]
fn without_guidance() {
    check("flux-schnell", None);
}

#[test]
fn a_batch_is_its_pictures() {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join("flux-dev"))).expect("a pipeline folder");
    let config: FluxConfig = folder.config("transformer", "config.json").expect("a configuration");
    let weights = folder.weights("transformer", None).expect("weights");
    let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
    let flux = Flux::load(&loader, &config).expect("a model");
    let golden = Golden::open("flux-dev");
    let get = |key: &str| golden.tensor::<3>(&format!("transformer.{key}"));
    let pooled = golden.tensor::<2>("transformer.pooled_projections");
    let positions: Vec<_> = (0..15).map(|i| [i / 3, i % 3]).collect();
    let places = flux.place(&positions, 9);
    let one = |x: Tensor<3>| x.narrow(0, 1, 1);
    let text = TextEmbeddings { txt: one(get("encoder_hidden_states")), pooled: pooled.narrow(0, 1, 1) };
    let inputs =
        Inputs { latents: one(get("hidden_states")), places: &places, time: 0.7, text: &text, guidance: Some(3.5) };
    let got = xdit_core::engine::forward(&flux, &mut Ctx { attn: &mut Local }, inputs).expect("one device");
    assert_rel_l2(got, one(get("out")), TOLERANCE);
}
