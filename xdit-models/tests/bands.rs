//! Pictures that many ranks decode, a band of rows each, against one device.

use std::ops::ControlFlow;
use std::time::Duration;

use burn::tensor::{Device, FloatDType, Tensor};
use xdit_comm::local::World;
use xdit_core::checkpoint::Loader;
use xdit_core::engine::{Halt, Reason};
use xdit_core::folder::{PipelineFolder, Source};
use xdit_models::vae::Vae;
use xdit_models::vae::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_models::vae::bands::{BandError, Bands};
use xdit_testing::golden::{self, Golden, assert_rel_l2};
use xdit_testing::mesh::on_world;

/// f32; sums are taken in another order.
const TOLERANCE: f64 = 1e-5;

/// conv_in, the middle and at least two up blocks.
const STAGES: usize = 4;

fn load(name: &str) -> AutoencoderKl {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join(name))).expect("a folder");
    let config: AutoencoderKlConfig = folder.config("vae", "config.json").expect("a configuration");
    let weights = folder.weights("vae", None).expect("weights");
    AutoencoderKl::load(&Loader::new(&weights, &Device::flex(), FloatDType::F32), &config).expect("a decoder")
}

fn apart(n: usize) -> World {
    World::apart(vec![Device::flex(); n])
}

/// The picture that `n` ranks put together, and its error.
#[track_caller]
fn check(name: &str, vae: &AutoencoderKl, latents: &Tensor<4>, n: usize) -> f64 {
    let want = vae.decode_whole(latents.clone());
    let pictures = on_world(apart(n), |ranks| {
        let bands = Bands::of(&*ranks, latents.dims()[2]);
        let band = vae.decode_band(latents.clone(), &bands, &mut || ControlFlow::Continue(())).expect("a band");
        bands.gather(band, vae.factors().height).expect("a picture")
    });
    let mut pictures = pictures.into_iter().map(|picture| picture.expect("no panic"));
    let got = pictures.next().flatten().expect("the first rank has the picture");
    assert!(pictures.all(|other| other.is_none()));
    assert_eq!(got.dims(), want.dims(), "{name}: {n} ranks");
    assert_rel_l2(got, want, TOLERANCE)
}

#[test]
fn bands_make_the_picture_of_one_device() {
    let names =
        ["flux-dev", "flux-schnell", "sd3", "sd35", "pixart-alpha", "pixart-sigma", "hunyuan-v11", "hunyuan-v12"];
    for name in names {
        let (vae, golden) = (load(name), Golden::open(name));
        for key in ["vae.latent", "vae.tiled.latent"].into_iter().filter(|key| golden.has(key)) {
            let latents: Tensor<4> = golden.tensor(key);
            let most = latents.dims()[2].min(4);
            let errors: Vec<_> = (1..=most).map(|n| check(name, &vae, &latents, n)).collect();
            println!("{name} {:?}: {errors:?}", latents.dims());
            assert_eq!(errors[0], 0.0, "one rank is one device");
        }
    }
}

#[test]
fn uneven_bands_of_any_height_and_down_to_one_row() {
    let (vae, golden) = (load("flux-dev"), Golden::open("flux-dev"));
    let latents: Tensor<4> = golden.tensor("vae.latent");
    let [b, c, h, w] = latents.dims();
    // two pictures at once, on levels of their own
    let batch = Tensor::cat(vec![latents.clone(), latents.clone() * 3.0 + 1.0], 0);
    let tall = batch.reshape([2 * b, c, h * w, 1]).repeat_dim(3, 5);
    for (height, ranks) in [(5, 2), (7, 3), (11, 4), (4, 4), (3, 3), (13, 7), (2, 2)] {
        let latents = tall.clone().narrow(2, 0, height);
        println!("{height} rows, {ranks} ranks: {:.1e}", check("flux-dev", &vae, &latents, ranks));
    }
}

/// As the pipeline's ranks do it: what belongs to a stage is done by all of them or by none.
#[test]
fn ranks_that_are_asked_to_stop_do_so_behind_the_same_stage_and_decode_the_next() {
    let (vae, golden) = (load("flux-dev"), Golden::open("flux-dev"));
    let latents: Tensor<4> = golden.tensor("vae.latent");
    for stop_at in 0..STAGES {
        let halts = [Halt::default(), Halt::default()];
        let stages = on_world(apart(3), |ranks| {
            let rank = ranks.rank();
            let bands = Bands::of(&*ranks, latents.dims()[2]);
            let decode = |halt: &Halt, stop_at: Option<usize>| {
                let mut stage = 0;
                let band = vae.decode_band(latents.clone(), &bands, &mut || {
                    if rank == 1 && stop_at == Some(stage) {
                        halt.ask(Reason::Cancelled);
                    }
                    stage += 1;
                    if halt.enter(stage) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                });
                (stage, band)
            };
            let (stage, stopped) = decode(&halts[0], Some(stop_at));
            assert!(matches!(stopped, Err(BandError::Cancelled(_))), "{:?}", stopped.map(|x| x.dims()));
            decode(&halts[1], None).1.expect("a band of the next picture");
            stage
        });
        let stages: Vec<_> = stages.into_iter().map(|stage| stage.expect("no panic")).collect();
        // rank 1 asks at the end of a stage; another may have begun the next by then
        assert!(stages.iter().all(|stage| *stage == stages[0] && *stage > stop_at), "{stages:?} {stop_at}");
    }
}

#[test]
fn a_rank_that_fails_ends_all_with_one_error() {
    let (vae, golden) = (load("flux-dev"), Golden::open("flux-dev"));
    let latents: Tensor<4> = golden.tensor("vae.latent");
    for (panics, what) in [(true, "panicked"), (false, "left")] {
        for fails_at in 0..STAGES {
            let world = apart(4).deadline(Duration::from_secs(5));
            let said = on_world(world, |ranks| {
                let bands = Bands::of(&*ranks, latents.dims()[2]);
                let mut stage = 0;
                let band = vae.decode_band(latents.clone(), &bands, &mut || {
                    stage += 1;
                    let fails = ranks.rank() == 2 && stage > fails_at;
                    assert!(!(fails && panics), "a fault");
                    if fails { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                band.and_then(|band| Ok(bands.gather(band, 8)?)).map(drop).map_err(|e| e.to_string())
            });
            for (rank, said) in said.into_iter().enumerate() {
                match (rank, said) {
                    (2, said) => assert_eq!(said.is_err(), panics),
                    (_, said) => {
                        let said = said.expect("no panic").expect_err("an error");
                        assert!(said.contains(&format!("because rank 2 {what}")), "{rank}: {said}");
                    }
                }
            }
        }
    }
}
