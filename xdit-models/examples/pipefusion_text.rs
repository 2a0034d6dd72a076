//! What it changes that FLUX's text goes through the blocks once a step, with patch 0, where xDiT has every patch take it
//! through its stage's blocks again: draws the held-out captions with the built-in model both ways, on one device, by
//! PipeFusion's oracle.
//!
//! `cargo run --release --example pipefusion_text [-- PATCHES:WARMUP ...]`.

use anyhow::{Context, Result};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use xdit_core::comm::even_sizes;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::noise::TorchGenerator;
use xdit_core::ops::to_f32;
use xdit_models::builtin;
use xdit_models::pipeline::components::{ALL_BLOCKS, Components};
use xdit_models::pipeline::encoding::Encoding;
use xdit_models::pipeline::registry;
use xdit_models::pipeline::{ModelSource, Options, Pipeline, Request, Settings};
use xdit_testing::oracle::{Displaced, displaced};
use xdit_testing::picture::{Likeness, Picture};
use xdit_testing::scene::{self, Scene};

struct Way {
    name: String,
    n_patches: usize,
    warmup_steps: usize,
    text_anew_at: Vec<usize>,
}

fn main() -> Result<()> {
    let parse = |text: String| -> Result<[usize; 2]> {
        let numbers = text.split(':').map(str::parse).collect::<Result<Vec<_>, _>>()?;
        numbers.try_into().map_err(|_| anyhow::anyhow!("{text:?} is not PATCHES:WARMUP"))
    };
    let mut settings = std::env::args().skip(1).map(parse).collect::<Result<Vec<_>>>()?;
    if settings.is_empty() {
        settings = vec![[4, 1]];
    }
    let device = Device::flex();
    let options = Options::new(FloatDType::F32);
    let pipeline = Pipeline::open(&ModelSource::Builtin, options.clone(), xdit_comm::local::world, &mut ())?;
    // an oracle takes the engine's place, so the pieces around it are put together here
    let folder = PipelineFolder::open(Source::Embedded(builtin::FILES))?;
    let architecture = registry::find(folder.class_name()).context("the built-in model's pipeline")?;
    let components = Components::new(folder, options);
    let captions: Vec<_> = scene::HELD_OUT.lines().collect();
    let Settings { height, width, num_inference_steps: n_steps, max_sequence_length, .. } =
        pipeline.settings(&Request::new(captions[0]))?;
    let texts = architecture.encode(&components, &Encoding::alone(&device), &captions, max_sequence_length, &mut ())?;
    let (dit, _) = architecture.dit(&components, &device, ALL_BLOCKS, &mut ())?;
    let vae = components.vae(&device, &mut ())?;
    let geometry = architecture.geometry(&components)?;
    let grid = geometry.grid(height, width);
    let sampler = architecture.sampler(&components, n_steps, grid.n_tokens())?;

    let draw = |way: &Way| -> Result<(Vec<Picture>, usize)> {
        let (mut pictures, mut right) = (Vec::new(), 0);
        for (i, (caption, text)) in captions.iter().zip(&texts).enumerate() {
            let dims = geometry.latent_dims(height, width);
            let noise = TorchGenerator::seeded(i as u64).randn(dims.iter().product());
            let request = Displaced {
                noise: geometry.pack(Tensor::from_data(TensorData::new(noise, dims), &Device::flex())),
                more_noise: &mut || unreachable!("flow matching adds none"),
                grid,
                text,
                negative: None,
                skip_layers: None,
                guidance: Some(0.0),
                size: [height, width],
                patch_rows: &even_sizes(grid.rows, way.n_patches),
                warmup_steps: way.warmup_steps,
                text_anew_at: &way.text_anew_at,
            };
            let latents = displaced(dit.as_ref(), sampler.as_ref(), request);
            let picture = vae.decode_observed(geometry.unpack(latents, height, width), &mut ());
            let picture = to_f32(picture.expect("nobody cancels").permute([0, 2, 3, 1]));
            let values = picture.into_data().try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("{e}"))?;
            let rgb: Vec<u8> = values.iter().map(|x| ((x / 2.0 + 0.5) * 255.0).round_ties_even() as u8).collect();
            let scene = Scene::parse(caption).with_context(|| format!("caption {i}: {caption:?}"))?;
            right += usize::from(scene::check(&scene, &rgb, width, height).is_ok());
            pictures.push(Picture { width, height, rgb });
        }
        Ok((pictures, right))
    };

    let mut ways = vec![Way { name: "one device".into(), n_patches: 1, warmup_steps: n_steps, text_anew_at: vec![] }];
    for [n_patches, warmup_steps] in settings {
        let way = |name: &str, text_anew_at: &[usize]| Way {
            name: format!("{n_patches} patches, warm-up {warmup_steps}, text {name}"),
            n_patches,
            warmup_steps,
            text_anew_at: text_anew_at.into(),
        };
        let half = dit.spec().n_blocks / 2;
        ways.push(way("once a step", &[]));
        ways.push(way("for each patch, two stages", &[0, half]));
    }
    println!("| | wholly right | PSNR, dB (worst) | SSIM (worst) |\n| --- | --- | --- | --- |");
    let mut whole: Vec<Picture> = Vec::new();
    for way in &ways {
        let (pictures, right) = draw(way)?;
        if whole.is_empty() {
            println!("| {} | {right} of {} | | |", way.name, captions.len());
            whole = pictures;
            continue;
        }
        println!("| {} | {right} of {} | {} |", way.name, captions.len(), Likeness::of(&pictures, &whole));
    }
    Ok(())
}
