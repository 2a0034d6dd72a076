//! What PipeFusion's approximation costs in quality: draws the held-out captions with the built-in model on one device and
//! in patches, and compares.
//!
//! `cargo run --release --example pipefusion_quality [-- STAGES:PATCHES:WARMUP ... [FOLDER]]`. The number of stages changes
//! nothing in the pictures. A folder stands for the built-in model.

use anyhow::{Context, Result};
use burn::tensor::{Device, FloatDType};
use xdit_core::mesh::ParallelConfig;
use xdit_core::stages::PipeFusion;
use xdit_models::pipeline::{Content, ModelSource, Options, Pipeline, Request};
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
    let captions = include_str!("../../xdit-testing/tiny-flux/captions.txt");
    let captions: Vec<_> = captions.lines().filter(|line| !line.trim().is_empty()).collect();

    let (want, score) = draw(&source, &captions, [1, 1, 0])?;
    println!(
        "| patches | warm-up steps | wholly right | PSNR, dB (worst) | SSIM (worst) |\n| --- | --- | --- | --- | --- |"
    );
    println!("| one device | | {score} of {} | | |", captions.len());
    for setting in settings {
        let (got, score) = draw(&source, &captions, setting)?;
        let pairs = || got.iter().zip(&want);
        let (psnr, ssim): (Vec<f64>, Vec<f64>) = pairs().map(|(a, b)| (psnr(a, b), ssim(a, b))).unzip();
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let worst = |x: &[f64]| x.iter().copied().fold(f64::INFINITY, f64::min);
        let [_, patches, warmup] = setting;
        println!(
            "| {patches} | {warmup} | {score} of {} | {:.1} ({:.1}) | {:.4} ({:.4}) |",
            captions.len(),
            mean(&psnr),
            worst(&psnr),
            mean(&ssim),
            worst(&ssim)
        );
    }
    Ok(())
}

/// Every caption's picture, and how many of them show what they should.
fn draw(
    source: &ModelSource,
    captions: &[&str],
    [n_stages, n_patches, warmup_steps]: [usize; 3],
) -> Result<(Vec<Picture>, usize)> {
    let mut options = Options::on(Device::flex(), FloatDType::F32);
    options.parallel = ParallelConfig { pipefusion: n_stages, ..options.parallel };
    options.pipefusion = PipeFusion { n_patches: Some(n_patches), warmup_steps, split: None };
    let mut pipeline = Pipeline::open(source, options, &mut ())?;
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

struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// Rec. 601, 0 to 255.
    fn luma(&self) -> Vec<f64> {
        let weigh = |p: &[u8]| 0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2]);
        self.rgb.chunks(3).map(weigh).collect()
    }
}

/// Of all channels; 99 for equal pictures.
fn psnr(a: &Picture, b: &Picture) -> f64 {
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let error = a.rgb.iter().zip(&b.rgb).map(square).sum::<f64>() / a.rgb.len() as f64;
    (10.0 * (255.0 * 255.0 / error).log10()).min(99.0)
}

/// Structural similarity (Wang et al. 2004) of the luma, in windows of 8 by 8 pixels, every fourth pixel one.
fn ssim(a: &Picture, b: &Picture) -> f64 {
    const SIDE: usize = 8;
    let (x, y) = (a.luma(), b.luma());
    let (c1, c2) = ((0.01_f64 * 255.0).powi(2), (0.03_f64 * 255.0).powi(2));
    let (mut sum, mut n) = (0.0, 0.0);
    for top in (0..=a.height - SIDE).step_by(4) {
        for left in (0..=a.width - SIDE).step_by(4) {
            let at = (0..SIDE * SIDE).map(|i| (top + i / SIDE) * a.width + left + i % SIDE);
            let [mut mx, mut my, mut xx, mut yy, mut xy] = [0.0; 5];
            for i in at {
                mx += x[i];
                my += y[i];
                xx += x[i] * x[i];
                yy += y[i] * y[i];
                xy += x[i] * y[i];
            }
            let k = (SIDE * SIDE) as f64;
            let (mx, my) = (mx / k, my / k);
            let (vx, vy, cov) = (xx / k - mx * mx, yy / k - my * my, xy / k - mx * my);
            sum += (2.0 * mx * my + c1) * (2.0 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2));
            n += 1.0;
        }
    }
    sum / n
}
