//! Draws the held-out captions with the built-in model and counts the pictures that show what they should.
//!
//! `cargo run --release --example score_builtin [-- FOLDER [CAPTIONS [CFG]]]`: another pipeline folder, other captions,
//! classifier-free guidance away from an empty prompt.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use burn::tensor::FloatDType;
use xdit_models::pipeline::{Content, ModelSource, Options, Pipeline, Request};
use xdit_testing::scene::{self, Scene};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let source = args.next().map_or(ModelSource::Builtin, |folder| ModelSource::Folder(folder.into()));
    let captions = match args.next() {
        Some(path) => std::fs::read_to_string(&path).with_context(|| path)?,
        None => scene::HELD_OUT.into(),
    };
    let cfg: Option<f32> = args.next().map(|scale| scale.parse()).transpose().context("CFG is not a number")?;
    let captions: Vec<_> = captions.lines().filter(|line| !line.trim().is_empty()).collect();

    let options = Options::new(FloatDType::F32);
    let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ())?;
    let mut wrong: BTreeMap<String, usize> = BTreeMap::new();
    for (i, caption) in captions.iter().enumerate() {
        let scene = Scene::parse(caption).with_context(|| format!("caption {i}: {caption:?}"))?;
        let negative_prompts = cfg.map(|_| String::new()).into_iter().collect();
        let request = Request { seed: i as u64, true_cfg_scale: cfg, negative_prompts, ..Request::new(caption) };
        let output = pipeline.generate(&request, &mut ())?.remove(0);
        let Content::Picture { width, height, rgb } = output.content else { unreachable!("a picture was asked for") };
        if let Err(why) = scene::check(&scene, &rgb, width, height) {
            println!("{i:3} {caption:?}: {why}");
            *wrong.entry(format!("{why:?}").split([' ', '(', '{']).next().unwrap_or_default().into()).or_default() += 1;
        }
    }
    let n_wrong: usize = wrong.values().sum();
    println!("{} of {} wholly right ({wrong:?})", captions.len() - n_wrong, captions.len());
    Ok(())
}
