//! What PipeFusion's approximation costs in quality: draws the held-out captions with the built-in model on one device and
//! in patches, and compares.
//!
//! `cargo run --release --example pipefusion_quality [-- STAGES:PATCHES:WARMUP ... [FOLDER]]`. The number of stages changes
//! nothing in the pictures. A folder stands for the built-in model.

use anyhow::{Context, Result};
use burn::tensor::FloatDType;
use xdit_core::mesh::ParallelConfig;
use xdit_core::stages::PipeFusion;
use xdit_models::pipeline::{Content, ModelSource, Options, Pipeline, Request};
use xdit_testing::picture::{Likeness, Picture};
use xdit_testing::scene::{self, Scene};

fn main() -> Result<()> {
    let parse = |text: String| -> Result<[usize; 3]> {
        let numbers = text.split(':').map(str::parse).collect::<Result<Vec<_>, _>>()?;
        numbers.try_into().map_err(|_| anyhow::anyhow!("{text:?} is not STAGES:PATCHES:WARMUP"))
    };
    let (settings, folders): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.contains(':'));
    let source = folders.first().map_or(ModelSource::Builtin, |folder| ModelSource::Folder(folder.into()));
    let mut settings = settings.into_iter().map(parse).collect::<Result<Vec<_>>>()?;
    if settings.is_empty() {
        settings = [2, 4, 8].iter().flat_map(|m| [0, 1, 2].map(|w| [2, *m, w])).collect();
    }
    let captions: Vec<_> = scene::HELD_OUT.lines().collect();

    let (want, score) = draw(&source, &captions, [1, 1, 0])?;
    println!(
        "| patches | warm-up steps | wholly right | PSNR, dB (worst) | SSIM (worst) |\n| --- | --- | --- | --- | --- |"
    );
    println!("| one device | | {score} of {} | | |", captions.len());
    for setting in settings {
        let (got, score) = draw(&source, &captions, setting)?;
        let ([_, patches, warmup], likeness) = (setting, Likeness::of(&got, &want));
        println!("| {patches} | {warmup} | {score} of {} | {likeness} |", captions.len());
    }
    Ok(())
}

/// Every caption's picture, and how many of them show what they should.
fn draw(
    source: &ModelSource,
    captions: &[&str],
    [n_stages, n_patches, warmup_steps]: [usize; 3],
) -> Result<(Vec<Picture>, usize)> {
    let mut options = Options::new(FloatDType::F32);
    options.parallel = ParallelConfig { pipefusion: n_stages, ..options.parallel };
    options.pipefusion = PipeFusion { n_patches: Some(n_patches), warmup_steps, split: None };
    let mut pipeline = Pipeline::open(source, options, xdit_comm::local::world, &mut ())?;
    let (mut pictures, mut right) = (Vec::new(), 0);
    for (i, caption) in captions.iter().enumerate() {
        let scene = Scene::parse(caption).with_context(|| format!("caption {i}: {caption:?}"))?;
        let request = Request { seed: i as u64, ..Request::new(caption) };
        let output = pipeline.generate(&request, &mut ())?.remove(0);
        let Content::Picture { width, height, rgb } = output.content else { unreachable!("a picture was asked for") };
        right += usize::from(scene::check(&scene, &rgb, width, height).is_ok());
        pictures.push(Picture { width, height, rgb });
    }
    Ok((pictures, right))
}
