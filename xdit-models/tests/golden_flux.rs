//! The Flux transformer against diffusers, block by block.

use burn::tensor::{Device, FloatDType, Tensor};
use xdit_attn::Local;
use xdit_core::checkpoint::Loader;
use xdit_core::dit::{Ctx, Dit, Inputs, TextEmbeddings, TextStates, TokenGrid};
use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::flux::{Flux, FluxConfig};
use xdit_testing::golden::{self, Golden, assert_rel_l2};

/// f32 sums in another order, through a handful of blocks.
const TOLERANCE: f64 = 1e-5;
const GRID: TokenGrid = TokenGrid { rows: 5, cols: 3 };

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
    let pooled = Some(golden.tensor("transformer.pooled_projections"));
    let text = TextEmbeddings { txt: TextStates::all(get("encoder_hidden_states")), txt_2: None, pooled };
    let places = flux.place(GRID, 9);
    let joint = places.joint.clone().expect("a table");
    // upstream repeats each angle for both channels of a pair, and puts the text's positions first
    for (i, table) in [joint.cos, joint.sin].into_iter().enumerate() {
        let want = golden.tensor::<2>(&format!("transformer.rope.{i}"));
        let [n, d] = want.dims();
        assert_rel_l2(table, want.reshape([n, d / 2, 2]).slice([0..n, 0..d / 2, 0..1]).squeeze_dim(2), 1e-7);
    }

    let latents = get("hidden_states");
    let inputs = Inputs { latents, places: &places, timestep: 700.0, text: &text, guidance, size: [80, 48] };
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
    let places = flux.place(GRID, 9);
    let one = |x: Tensor<3>| x.narrow(0, 1, 1);
    let txt = TextStates::all(one(get("encoder_hidden_states")));
    let text = TextEmbeddings { txt, txt_2: None, pooled: Some(pooled.narrow(0, 1, 1)) };
    let latents = one(get("hidden_states"));
    let inputs = Inputs { latents, places: &places, timestep: 700.0, text: &text, guidance: Some(3.5), size: [80, 48] };
    let got = xdit_core::engine::forward(&flux, &mut Ctx { attn: &mut Local }, inputs, &[]).expect("one device");
    assert_rel_l2(got, one(get("out")), TOLERANCE);
}
