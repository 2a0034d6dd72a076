//! The transformers against diffusers, block by block.

use std::ops::Range;

use burn::tensor::{Device, FloatDType, Tensor};
use serde::de::DeserializeOwned;
use xdit_attn::Local;
use xdit_core::checkpoint::Loader;
use xdit_core::dit::{Ctx, Dit, Inputs, Streams, TextEmbeddings, TextStates, TokenGrid};
use xdit_core::engine::forward;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::dit::flux::Flux;
use xdit_models::dit::hunyuan_dit::HunyuanDit;
use xdit_models::dit::pixart::PixArt;
use xdit_models::dit::sd3::Sd3;
use xdit_models::error::ModelError;
use xdit_models::pipeline::geometry::Geometry;
use xdit_testing::golden::{self, Golden, assert_rel_l2};

/// f32 sums in another order, through a handful of blocks.
const TOLERANCE: f64 = 1e-5;
/// Ten pixels of 8 a token: 80 x 48 pixels.
const GRID: TokenGrid = TokenGrid::picture(5, 3);

fn load<C: DeserializeOwned, D>(
    name: &str,
    build: impl FnOnce(&Loader<'_>, &C, Range<usize>) -> Result<D, ModelError>,
) -> D {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join(name))).expect("a pipeline folder");
    let weights = folder.weights("transformer", None).expect("weights");
    let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
    let config = folder.config("transformer", "config.json").expect("a configuration");
    let dit = build(&loader, &config, 0..usize::MAX).expect("a model");
    assert_eq!(loader.finish(&[]).expect("no tensor missing").unused, Vec::<String>::new());
    dit
}

/// The golden values of a transformer.
struct Parts(Golden);

impl Parts {
    fn open(name: &str) -> Self {
        Self(Golden::open(name))
    }

    fn get<const D: usize>(&self, key: &str) -> Tensor<D> {
        self.0.tensor(&format!("transformer.{key}"))
    }

    fn has(&self, key: &str) -> bool {
        self.0.has(&format!("transformer.{key}"))
    }

    /// Latents as tokens, whichever they are in the file.
    fn tokens(&self, key: &str) -> Tensor<3> {
        if self.0.dims(&format!("transformer.{key}")).len() == 3 {
            return self.get(key);
        }
        let x: Tensor<4> = self.get(key);
        Geometry { vae_scale: 8, patch: 2, channels: x.dims()[1], max_tokens: None, packed: false }.pack(x)
    }

    fn mask(&self, key: &str) -> Option<Vec<Vec<bool>>> {
        Some(
            self.0.ids(&format!("transformer.{key}")).iter().map(|row| row.iter().map(|x| *x != 0).collect()).collect(),
        )
    }

    /// The encoded prompts, under whichever names the model's inputs have.
    fn text(&self) -> TextEmbeddings {
        let seen = match self.has("encoder_attention_mask") {
            true => self.mask("encoder_attention_mask"),
            false if self.has("text_embedding_mask") => self.mask("text_embedding_mask"),
            false => None,
        };
        TextEmbeddings {
            txt: TextStates { states: self.get("encoder_hidden_states"), seen },
            txt_2: self.has("encoder_hidden_states_t5").then(|| TextStates {
                states: self.get("encoder_hidden_states_t5"),
                seen: self.mask("text_embedding_mask_t5"),
            }),
            pooled: self.has("pooled_projections").then(|| self.get("pooled_projections")),
        }
    }
}

/// Every part of a forward pass. `temb` is the key of what blocks are conditioned on.
#[track_caller]
fn check(name: &str, dit: &dyn Dit, temb: &str, timestep: f32, guidance: Option<f32>) {
    let parts = Parts::open(name);
    let close = |what: &str, got: Tensor<3>, want: Tensor<3>| {
        println!("{name} {what}: {:.1e}", assert_rel_l2(got, want, TOLERANCE));
    };
    let text = parts.text();
    let positions = dit.positions(GRID, text.txt.n_tokens());
    if let Some(table) = &positions.added
        && parts.has("pos")
    {
        close("pos", table.clone().unsqueeze(), parts.get("pos"));
    }
    let latents = || parts.tokens("hidden_states");
    let timesteps = &[timestep];
    let inputs = Inputs { timesteps, text: &text, guidance, size: [80, 48] };
    let cond = dit.condition(inputs).remove(0);
    let (txt, img) = (dit.embed_txt(&text, &cond, &positions), dit.embed_img(latents(), &positions));
    // one time for the whole batch: where nothing else enters, upstream repeats its row
    let want: Tensor<2> = parts.get(temb);
    close("temb", cond.temb.clone().expand(want.dims()).unsqueeze(), want.unsqueeze());
    close("txt", txt.clone(), parts.get("txt"));
    close("img", img.clone(), parts.get("img"));
    let mut x = Streams::new(Some(txt), img);
    for i in 0..dit.spec().n_blocks {
        x = dit
            .block(&mut Ctx { attn: &mut Local, positions: &positions }, i, x, &cond)
            .expect("one device cannot fail");
        // models with two streams return both
        let (txt, img) = (format!("block.{i}.0"), format!("block.{i}.1"));
        if parts.has(&txt) {
            close(&txt, x.txt.clone().expect("the text"), parts.get(&txt));
        }
        let img = if parts.has(&img) { img } else { format!("block.{i}") };
        close(&img, x.img.clone(), parts.get(&img));
        assert_eq!(x.skips.len(), dit.skips_before(i + 1), "skips after block {i}");
    }
    assert!(x.skips.is_empty(), "every skip is taken up");
    // of a prediction with variances the pipelines keep the first half
    let want = match parts.0.dims("transformer.out").as_slice() {
        [_, channels, ..] if *channels > dit.spec().channels / 4 && parts.0.dims("transformer.out").len() == 4 => {
            let out: Tensor<4> = parts.get("out");
            Geometry { vae_scale: 8, patch: 2, channels: channels / 2, max_tokens: None, packed: false }
                .pack(out.narrow(1, 0, channels / 2))
        }
        _ => parts.tokens("out"),
    };
    close("out", dit.head(x, &cond), want.clone());

    // the second picture of the batch by itself
    let one =
        |x: TextStates| TextStates { states: x.states.narrow(0, 1, 1), seen: x.seen.map(|seen| vec![seen[1].clone()]) };
    let text = TextEmbeddings {
        txt: one(text.txt.clone()),
        txt_2: text.txt_2.clone().map(one),
        pooled: text.pooled.clone().map(|x| x.narrow(0, 1, 1)),
    };
    let (latents, inputs) = (latents().narrow(0, 1, 1), Inputs { text: &text, ..inputs });
    let got = forward(dit, &mut Local, &positions, latents, inputs, &[]).expect("one device");
    close("one of the batch", got, want.narrow(0, 1, 1));
}

#[test]
fn flux_dev() {
    check("flux-dev", &load("flux-dev", Flux::load), "temb", 700.0, Some(3.5));
}

#[test]
fn flux_schnell() {
    check("flux-schnell", &load("flux-schnell", Flux::load), "temb", 700.0, None);
}

#[test]
fn flux_turns_by_upstreams_angles() {
    for name in ["flux-dev", "flux-schnell"] {
        let joint = load(name, Flux::load).positions(GRID, 9).rope.expect("a table");
        // upstream repeats each angle for both channels of a pair, and puts the text's positions first
        for (i, table) in [joint.cos, joint.sin].into_iter().enumerate() {
            let want: Tensor<2> = Parts::open(name).get(&format!("rope.{i}"));
            let [n, d] = want.dims();
            assert_rel_l2(table, want.reshape([n, d / 2, 2]).slice([0..n, 0..d / 2, 0..1]).squeeze_dim(2), 1e-7);
        }
    }
}

#[test]
fn sd3() {
    check("sd3", &load("sd3", Sd3::load), "temb", 700.0, None);
}

#[test]
fn sd3_5() {
    check("sd35", &load("sd35", Sd3::load), "temb", 700.0, None);
}

#[test]
fn sd3_without_a_block() {
    for name in ["sd3", "sd35"] {
        let (parts, dit) = (Parts::open(name), load(name, Sd3::load));
        let text = parts.text();
        let positions = dit.positions(GRID, 9);
        let latents = parts.tokens("hidden_states");
        let inputs = Inputs { timesteps: &[700.0], text: &text, guidance: None, size: [80, 48] };
        let got = forward(&dit, &mut Local, &positions, latents, inputs, &[1]).expect("one device");
        assert_rel_l2(got, parts.tokens("out_without_block_1"), TOLERANCE);
    }
}

/// Positions of other sizes.
#[track_caller]
fn check_positions(name: &str, dit: &dyn Dit) {
    let golden = Golden::open(name);
    let mut n = 0;
    for key in golden.keys().into_iter().filter(|key| key.starts_with("pos.")) {
        let (rows, cols) = key["pos.".len()..].split_once('x').expect("a size");
        let grid = TokenGrid::picture(rows.parse().expect("a number"), cols.parse().expect("a number"));
        let table = dit.positions(grid, 9).added.expect("a table");
        assert_rel_l2(table.unsqueeze(), golden.tensor::<3>(&key), 1e-6);
        n += 1;
    }
    assert!(n > 2);
}

#[test]
fn positions_of_other_sizes() {
    check_positions("sd3", &load("sd3", Sd3::load));
    check_positions("sd35", &load("sd35", Sd3::load));
    check_positions("pixart-alpha", &load("pixart-alpha", PixArt::load));
    check_positions("pixart-sigma", &load("pixart-sigma", PixArt::load));
}

#[test]
fn pixart_alpha() {
    check("pixart-alpha", &load("pixart-alpha", PixArt::load), "temb.1", 700.0, None);
}

#[test]
fn pixart_sigma() {
    check("pixart-sigma", &load("pixart-sigma", PixArt::load), "temb.1", 700.0, None);
}

#[test]
fn hunyuan_dit_1_1() {
    check("hunyuan-v11", &load("hunyuan-v11", HunyuanDit::load), "temb", 681.0, None);
}

#[test]
fn hunyuan_dit_1_2() {
    check("hunyuan-v12", &load("hunyuan-v12", HunyuanDit::load), "temb", 681.0, None);
}
