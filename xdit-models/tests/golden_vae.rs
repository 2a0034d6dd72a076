//! The decoder against diffusers, stage by stage, and its tiles.

use std::ops::ControlFlow;

use burn::tensor::{Device, FloatDType, Tensor};
use xdit_core::checkpoint::Loader;
use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::vae::Vae;
use xdit_models::vae::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_models::vae::tiles::{Cancelled, Tiling};
use xdit_testing::golden::{self, Golden, assert_rel_l2, rel_l2};

/// f32 on both sides; ours has the larger rounding of fast convolutions.
const TOLERANCE: f64 = 3e-5;

fn load(name: &str, device: &Device) -> AutoencoderKl {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join(name))).unwrap();
    let config: AutoencoderKlConfig = folder.config("vae", "config.json").unwrap();
    let weights = folder.weights("vae", None).unwrap();
    let loader = Loader::new(&weights, device, FloatDType::F32);
    let vae = AutoencoderKl::load(&loader, &config).unwrap();
    assert_eq!(loader.finish(AutoencoderKl::UNUSED).unwrap().unused, [""; 0]);
    vae
}

#[track_caller]
fn check_stages(name: &str, device: &Device) {
    let (golden, vae) = (Golden::open(name), load(name, device));
    let to = |x: &Tensor<4>, device: &Device| Tensor::<4>::from_data(x.to_data(), device);
    let here = |x: &Tensor<4>| to(x, &Device::flex());
    let mut n = 0;
    let got = vae.decode_each(to(&golden.tensor("vae.latent"), device), |stage, x| {
        let key = stage.replace("mid_block", "mid").replace("up_blocks", "up");
        let error = assert_rel_l2(here(x), golden.tensor(&format!("vae.{key}")), TOLERANCE);
        println!("{name} vae {stage}: {error:.1e}");
        n += 1;
    });
    println!("out {:.1e}", assert_rel_l2(here(&got), golden.tensor("vae.out"), TOLERANCE));
    assert!(n >= 6, "conv_in, the middle and four up blocks");
}

fn go_on(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[track_caller]
fn check_tiled(name: &str) {
    let (golden, vae) = (Golden::open(name), load(name, &Device::flex()));
    let latent: Tensor<4> = golden.tensor("vae.tiled.latent");
    let mut seen = Vec::new();
    let mut progress = |done, total| {
        seen.push((done, total));
        ControlFlow::Continue(())
    };
    let got = vae.decode(latent.clone(), Tiling::On, &mut progress).unwrap();
    println!("{name} tiled {:.1e}", assert_rel_l2(got.clone(), golden.tensor("vae.tiled.out"), TOLERANCE));
    let total = seen.len();
    assert!(total > 1);
    assert_eq!(seen, (1..=total).map(|done| (done, total)).collect::<Vec<_>>());
    let whole = vae.decode(latent.clone(), Tiling::Off, &mut go_on).unwrap();
    assert!(rel_l2(got, whole) > TOLERANCE, "tiles see less than the whole");
    let mut stop = |_, _| ControlFlow::Break(());
    assert_eq!(vae.decode(latent, Tiling::On, &mut stop).unwrap_err(), Cancelled);
}

#[test]
fn stages_of_dev() {
    check_stages("flux-dev", &Device::flex());
}

#[test]
fn stages_of_schnell() {
    check_stages("flux-schnell", &Device::flex());
}

/// Four channels or sixteen, with and without a convolution before, new and old names of the attention.
#[test]
fn stages_of_the_others() {
    for name in ["sd3", "sd35", "pixart-alpha", "pixart-sigma", "hunyuan-v11", "hunyuan-v12"] {
        check_stages(name, &Device::flex());
    }
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU"]
fn stages_on_a_gpu() {
    xdit_core::cuda::libraries::load().expect("NVIDIA's libraries");
    for name in ["flux-dev", "sd3", "sd35", "pixart-alpha", "pixart-sigma", "hunyuan-v11"] {
        check_stages(name, &Device::cuda(0));
    }
}

#[test]
fn tiles_of_the_others() {
    for name in ["pixart-alpha", "hunyuan-v11", "hunyuan-v12"] {
        check_tiled(name);
    }
}

#[test]
fn tiles_of_dev() {
    check_tiled("flux-dev");
}

#[test]
fn tiles_of_schnell() {
    check_tiled("flux-schnell");
}

#[test]
fn a_small_picture_is_not_cut() {
    let (golden, vae) = (Golden::open("flux-dev"), load("flux-dev", &Device::flex()));
    let latent: Tensor<4> = golden.tensor::<4>("vae.latent").narrow(3, 0, 6);
    let on = vae.decode(latent.clone(), Tiling::On, &mut go_on).unwrap();
    let off = vae.decode(latent, Tiling::Off, &mut go_on).unwrap();
    assert_eq!(rel_l2(on, off), 0.0);
}
