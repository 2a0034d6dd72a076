//! PipeFusion on meshes of threads against its approximation on one device.

use std::ops::Range;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use xdit_core::checkpoint::Loader;
use xdit_core::comm::even_sizes;
use xdit_core::dit::{Dit, TextEmbeddings, TextStates, TokenGrid};
use xdit_core::engine::{self, Cfg, Denoise, Halt, SkipLayers};
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::mesh::{Mesh, ParallelConfig};
use xdit_core::noise::TorchGenerator;
use xdit_core::sampler::{self, Flow, Sampler};
use xdit_core::stages::{PipeFusion, stages};
use xdit_models::dit::flux::Flux;
use xdit_models::dit::hunyuan_dit::HunyuanDit;
use xdit_models::dit::pixart::PixArt;
use xdit_models::dit::sd3::Sd3;
use xdit_models::error::ModelError;
use xdit_models::pipeline::worker::Worker;
use xdit_models::pipeline::{ModelSource, Options, OutputType, Pipeline, Request};
use xdit_testing::golden::{self, Golden};
use xdit_testing::mesh::on_ranks;
use xdit_testing::oracle::{Displaced, displaced};

/// Ring attention adds up the parts in another order.
const RING: f64 = 1e-5;
/// No number of patches but 7 divides the rows.
const GRID: TokenGrid = TokenGrid::picture(7, 3);
const N_STEPS: usize = 4;
const ONE: ParallelConfig = ParallelConfig { data: 1, cfg: 1, pipefusion: 1, ring: 1, ulysses: 1, tensor: 1 };

#[derive(Debug, Clone, Copy)]
struct Patches {
    n: usize,
    warmup_steps: usize,
}

type Read = Box<dyn Fn(Range<usize>) -> Box<dyn Dit> + Sync>;

/// A tiny model of random weights and at least four blocks, its prompts and a sampler with memory or noise of its own.
struct Case {
    name: &'static str,
    read: Read,
    whole: Box<dyn Dit>,
    texts: [TextEmbeddings; 2],
    sampler: Box<dyn Sampler>,
    guidance: Option<f32>,
    /// Where there is a negative prompt.
    skip_layers: Option<SkipLayers>,
}

fn reader<C: DeserializeOwned + Sync + 'static, D: Dit + 'static>(
    name: &str,
    load: fn(&Loader<'_>, &C, Range<usize>) -> Result<D, ModelError>,
) -> Read {
    let folder = PipelineFolder::open(Source::Dir(golden::dir().join(name))).expect("a pipeline folder");
    let mut weights = folder.weights("transformer", None).expect("weights");
    let mut config: Value = folder.config("transformer", "config.json").expect("a configuration");
    if name.starts_with("sd3") || name.starts_with("pixart") {
        // of three blocks, the last of SD 3's unlike the others; four stages want more
        weights = golden::with_blocks(&weights, &[0, 1, 0, 1, 2]);
        config["num_layers"] = json!(5);
        if name == "sd35" {
            config["dual_attention_layers"] = json!([0, 1, 2, 3]);
        }
    }
    let config: C = serde_json::from_value(config).expect("a configuration");
    Box::new(move |blocks| {
        let loader = Loader::new(&weights, &Device::flex(), FloatDType::F32);
        Box::new(load(&loader, &config, blocks).expect("a model"))
    })
}

/// The prompts of the golden case.
fn texts(name: &str) -> [TextEmbeddings; 2] {
    let golden = Golden::open(name);
    let key = |key: &str| format!("transformer.{key}");
    let seen = |keys: &[&str]| {
        let key = keys.iter().map(|name| key(name)).find(|key| golden.has(key))?;
        Some(golden.ids(&key).iter().map(|row| row.iter().map(|x| *x != 0).collect()).collect::<Vec<Vec<bool>>>())
    };
    let row = |i: usize| {
        let states = |name: &str, seen: Option<Vec<Vec<bool>>>| TextStates {
            states: golden.tensor::<3>(&key(name)).narrow(0, i, 1),
            seen: seen.map(|seen| vec![seen[i].clone()]),
        };
        TextEmbeddings {
            txt: states("encoder_hidden_states", seen(&["encoder_attention_mask", "text_embedding_mask"])),
            txt_2: golden
                .has(&key("encoder_hidden_states_t5"))
                .then(|| states("encoder_hidden_states_t5", seen(&["text_embedding_mask_t5"]))),
            pooled: golden
                .has(&key("pooled_projections"))
                .then(|| golden.tensor::<2>(&key("pooled_projections")).narrow(0, i, 1)),
        }
    };
    [row(0), row(1)]
}

fn sampler_of(class: &str) -> Box<dyn Sampler> {
    let config = json!({ "num_train_timesteps": 1000, "steps_offset": 1 });
    sampler::from_config(class, &config, N_STEPS, Flow { sigmas: None, n_tokens: GRID.n_tokens() }).expect("a sampler")
}

fn case(name: &'static str) -> Case {
    let flow = "FlowMatchEulerDiscreteScheduler";
    let (read, class, guidance) = match name {
        "flux-dev" => (reader(name, Flux::load), flow, Some(3.5)),
        "flux-schnell" => (reader(name, Flux::load), flow, None),
        "sd3" | "sd35" => (reader(name, Sd3::load), flow, None),
        "pixart-alpha" => (reader(name, PixArt::load), "DPMSolverMultistepScheduler", None),
        "pixart-sigma" => (reader(name, PixArt::load), "EulerDiscreteScheduler", None),
        _ => (reader(name, HunyuanDit::load), "DDPMScheduler", None),
    };
    Case {
        name,
        whole: read(0..usize::MAX),
        read,
        texts: texts(name),
        sampler: sampler_of(class),
        guidance,
        skip_layers: None,
    }
}

fn noises(case: &Case, seed: u64, grid: TokenGrid) -> impl FnMut() -> Tensor<3> + use<> {
    let mut generator = TorchGenerator::seeded(seed);
    let dims = [1, grid.n_tokens(), case.whole.spec().channels];
    move || Tensor::from_data(TensorData::new(generator.randn(dims.iter().product()), dims), &Device::flex())
}

fn values(x: Tensor<3>) -> Vec<f32> {
    x.into_data().try_to_vec().expect("f32")
}

fn oracle(case: &Case, grid: TokenGrid, n_patches: usize, warmup_steps: usize, guided: bool) -> Vec<f32> {
    let mut noise = noises(case, 3, grid);
    let request = Displaced {
        noise: noise(),
        more_noise: &mut noise,
        grid,
        text: &case.texts[0],
        negative: guided.then_some((&case.texts[1], 3.0)),
        skip_layers: case.skip_layers.as_ref().filter(|_| guided),
        guidance: case.guidance,
        size: [16 * grid.rows, 16 * grid.cols],
        patch_rows: &even_sizes(grid.rows, n_patches),
        warmup_steps,
        text_anew_at: &[],
    };
    values(displaced(case.whole.as_ref(), case.sampler.as_ref(), request))
}

/// Every picture, and the bytes that each rank kept.
fn on_mesh(
    case: &Case,
    grids: &[TokenGrid],
    parallel: ParallelConfig,
    split: Option<&[usize]>,
    patches: Patches,
    guided: bool,
) -> (Vec<Vec<f32>>, Vec<u64>) {
    let cut = stages(&vec![1.0; case.whole.spec().n_blocks], parallel.pipefusion, split).expect("stages");
    let stages: Vec<_> = cut.into_iter().map(|blocks| ((case.read)(blocks.clone()), blocks)).collect();
    let mesh = Mesh::new(parallel, parallel.world_size()).expect("a mesh");
    let halts: Vec<_> = grids.iter().map(|_| Halt::default()).collect();
    let drawn = on_ranks(mesh.world_size(), |world| {
        let mut worker = Worker::new(&mesh, world, false).expect("a rank");
        let mut mine = Vec::new();
        for i in mesh.share(worker.replica, grids.len()) {
            let (dit, blocks) = &stages[worker.stage];
            let team = worker.team(&mesh, blocks.clone(), [patches.n, patches.warmup_steps], &halts[i]);
            let request = Denoise {
                noise: Box::new(noises(case, 3, grids[i])),
                grid: grids[i],
                size: [16 * grids[i].rows, 16 * grids[i].cols],
                text: &case.texts[0],
                guidance: case.guidance,
                cfg: guided.then_some(Cfg {
                    negative: &case.texts[1],
                    scale: 3.0,
                    rescale: 0.0,
                    skip_layers: case.skip_layers.as_ref(),
                }),
            };
            let latents = engine::denoise(dit.as_ref(), team, case.sampler.as_ref(), request, &mut ())
                .unwrap_or_else(|e| panic!("{} {parallel:?} {patches:?}: {e}", case.name));
            mine.push((i, values(latents)));
        }
        (mine, worker.attn.kept_bytes())
    });
    let (pictures, kept): (Vec<_>, Vec<_>) = drawn.into_iter().unzip();
    let mut latents = vec![Vec::new(); grids.len()];
    pictures.into_iter().flatten().for_each(|(i, picture)| latents[i] = picture);
    (latents, kept)
}

#[track_caller]
fn assert_equal(what: &str, got: &[f32], want: &[f32], ring: bool) {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    let error = (error / want.iter().map(|x| square(*x)).sum::<f64>()).sqrt();
    if ring {
        assert!(error <= RING, "{what}: {error:.1e}");
    } else {
        let same = got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{what}: {error:.1e}");
    }
}

/// Stages 2, 3, 4, patches 2 to 6, warm-up 0, 1, 2; then hybrids up to 16 ranks.
#[track_caller]
fn check(name: &'static str) {
    let case = case(name);
    let n_heads = case.whole.spec().n_heads;
    for n_patches in 2..=6 {
        for warmup_steps in 0..=2 {
            let want = oracle(&case, GRID, n_patches, warmup_steps, false);
            let patches = Patches { n: n_patches, warmup_steps };
            for pipefusion in 2..=4 {
                let parallel = ParallelConfig { pipefusion, ..ONE };
                let (got, _) = on_mesh(&case, &[GRID], parallel, None, patches, false);
                assert_equal(&format!("{name} {parallel:?} {patches:?}"), &got[0], &want, false);
            }
        }
    }
    let hybrids = [
        ParallelConfig { pipefusion: 2, ulysses: 2, ..ONE },
        ParallelConfig { pipefusion: 3, ulysses: 2, ..ONE },
        ParallelConfig { pipefusion: 2, cfg: 2, ..ONE },
        ParallelConfig { pipefusion: 2, data: 2, ..ONE },
        ParallelConfig { pipefusion: 3, cfg: 2, ulysses: 2, ..ONE },
        ParallelConfig { pipefusion: 2, cfg: 2, data: 2, ulysses: 2, ..ONE },
        ParallelConfig { pipefusion: 2, ring: 2, ..ONE },
        ParallelConfig { pipefusion: 3, ring: 2, ..ONE },
        ParallelConfig { pipefusion: 2, ring: 2, ulysses: 2, ..ONE },
        ParallelConfig { pipefusion: 2, cfg: 2, ring: 2, ulysses: 2, ..ONE },
        ParallelConfig { pipefusion: 4, cfg: 2, ulysses: 2, ..ONE },
    ];
    // with four patches the smallest has three tokens, fewer than four ranks
    for (n_patches, warmup_steps) in [(2, 1), (3, 0), (3, 2)] {
        let want = oracle(&case, GRID, n_patches, warmup_steps, true);
        let patches = Patches { n: n_patches, warmup_steps };
        for parallel in hybrids.into_iter().filter(|c| c.ulysses <= n_heads) {
            // as many pictures as replicas, and one more
            let grids = vec![GRID; parallel.data + usize::from(parallel.data > 1)];
            let (got, _) = on_mesh(&case, &grids, parallel, None, patches, true);
            for got in got {
                assert_equal(&format!("{name} {parallel:?} {patches:?}"), &got, &want, parallel.ring > 1);
            }
        }
    }
}

#[test]
fn flux_dev() {
    check("flux-dev");
}

#[test]
fn flux_schnell() {
    check("flux-schnell");
}

#[test]
fn sd3() {
    check("sd3");
}

#[test]
fn sd3_5() {
    check("sd35");
}

#[test]
fn pixart_alpha() {
    check("pixart-alpha");
}

#[test]
fn pixart_sigma() {
    check("pixart-sigma");
}

#[test]
fn hunyuan_dit() {
    check("hunyuan-v11");
}

#[test]
fn hunyuan_dit_of_six_blocks() {
    check("hunyuan-v12");
}

/// Every way to cut the U of blocks: skips cross one boundary or several.
#[test]
fn uneven_splits() {
    let case = case("hunyuan-v12");
    let want = oracle(&case, GRID, 3, 1, false);
    let patches = Patches { n: 3, warmup_steps: 1 };
    let splits: [&[usize]; 8] =
        [&[1, 5], &[5, 1], &[2, 4], &[1, 1, 4], &[4, 1, 1], &[2, 1, 3], &[1, 2, 2, 1], &[1, 1, 1, 1, 1, 1]];
    for split in splits {
        let parallel = ParallelConfig { pipefusion: split.len(), ..ONE };
        let (got, _) = on_mesh(&case, &[GRID], parallel, Some(split), patches, false);
        assert_equal(&format!("{split:?}"), &got[0], &want, false);
    }
}

/// All steps warm-up: nothing is approximated.
#[test]
fn warm_up_alone_is_one_device() {
    for name in ["flux-dev", "sd35", "pixart-alpha", "hunyuan-v12"] {
        let case = case(name);
        let (want, _) = on_mesh(&case, &[GRID], ONE, None, Patches { n: 1, warmup_steps: 0 }, true);
        for parallel in [
            ParallelConfig { pipefusion: 3, ..ONE },
            ParallelConfig { pipefusion: 2, ulysses: 2, ..ONE },
            ParallelConfig { pipefusion: 2, ring: 2, ..ONE },
        ] {
            for warmup_steps in [N_STEPS, 99] {
                let (got, _) = on_mesh(&case, &[GRID], parallel, None, Patches { n: 5, warmup_steps }, true);
                assert_equal(&format!("{name} {parallel:?}"), &got[0], &want[0], parallel.ring > 1);
            }
        }
    }
}

/// What one picture leaves behind another does not see, without warm-up either, nor after one of another size.
#[test]
fn pictures_do_not_see_each_other() {
    let small = TokenGrid::picture(4, 2);
    for name in ["flux-dev", "pixart-alpha"] {
        let case = case(name);
        for warmup_steps in [0, 1] {
            let patches = Patches { n: 3, warmup_steps };
            let parallel = ParallelConfig { pipefusion: 2, ulysses: 2, ..ONE };
            let (got, _) = on_mesh(&case, &[GRID, GRID, small, GRID, small], parallel, None, patches, true);
            let want = [GRID, small].map(|grid| oracle(&case, grid, 3, warmup_steps, true));
            for (got, want) in got.iter().zip([&want[0], &want[0], &want[1], &want[0], &want[1]]) {
                assert_equal(&format!("{name} warm-up {warmup_steps}"), got, want, false);
            }
        }
    }
}

/// The pass without some blocks begins after the first step, and has keys and values of a step before when it counts; of its
/// own picture, also for the second one.
#[test]
fn skip_layer_guidance() {
    for (name, blocks) in [("sd35", vec![1]), ("sd35", vec![0, 3, 4]), ("sd3", vec![2]), ("pixart-alpha", vec![1, 2])] {
        for (start, warmup_steps) in [(0.0, 0), (0.0, 1), (0.3, 1), (0.3, 2), (0.0, N_STEPS)] {
            let skip = SkipLayers { blocks: blocks.clone(), scale: 2.8, start, stop: 0.9 };
            let case = Case { skip_layers: Some(skip), ..case(name) };
            let want = oracle(&case, GRID, 3, warmup_steps, true);
            for parallel in [
                ParallelConfig { pipefusion: 3, ..ONE },
                ParallelConfig { pipefusion: 2, cfg: 2, ..ONE },
                ParallelConfig { pipefusion: 2, ulysses: 2, ..ONE },
                ParallelConfig { pipefusion: 2, ring: 2, ..ONE },
            ] {
                let patches = Patches { n: 3, warmup_steps };
                let what =
                    format!("{name} without {blocks:?} from {start} on, {parallel:?}, {warmup_steps} whole steps");
                let (got, _) = on_mesh(&case, &[GRID, GRID], parallel, None, patches, true);
                got.iter().for_each(|got| assert_equal(&what, got, &want, parallel.ring > 1));
            }
            if warmup_steps == N_STEPS {
                let (got, _) = on_mesh(&case, &[GRID], ONE, None, Patches { n: 1, warmup_steps }, true);
                assert_equal(&format!("{name} on one device"), &got[0], &want, false);
            }
        }
    }
}

/// `2 batch (txt + img) heads head_dim` values per block, shared out over the sequence, per prompt.
#[test]
fn kept_bytes_are_as_documented() {
    let case = case("flux-dev");
    let spec = case.whole.spec();
    let n_txt = case.texts[0].txt.n_tokens();
    let per_block = (2 * (n_txt + GRID.n_tokens()) * spec.n_heads * spec.head_dim * 4) as u64;
    let patches = Patches { n: 3, warmup_steps: 1 };
    for (parallel, split) in [
        (ParallelConfig { pipefusion: 2, ..ONE }, [3, 1]),
        (ParallelConfig { pipefusion: 2, ulysses: 2, ..ONE }, [2, 2]),
        (ParallelConfig { pipefusion: 2, ulysses: 2, ring: 2, ..ONE }, [2, 2]),
    ] {
        let (_, kept) = on_mesh(&case, &[GRID], parallel, Some(&split), patches, true);
        // all ranks of a stage together keep its blocks' keys and values once, for both prompts
        let sequence = parallel.ulysses * parallel.ring;
        for (stage, n_blocks) in split.into_iter().enumerate() {
            let of_stage: u64 = kept[stage * sequence..(stage + 1) * sequence].iter().sum();
            assert_eq!(of_stage, 2 * n_blocks as u64 * per_block, "{parallel:?} stage {stage}");
        }
        let (_, kept) = on_mesh(&case, &[GRID], ONE, None, patches, true);
        assert_eq!(kept, [0], "one device keeps nothing");
    }
}

/// From headers alone: what each stage reads, and what each rank keeps.
#[test]
fn a_plan_says_what_ranks_will_hold() {
    for name in ["flux-dev", "sd3", "sd35", "pixart-alpha", "pixart-256", "hunyuan-v11", "hunyuan-v12"] {
        for parallel in [
            ONE,
            ParallelConfig { pipefusion: 2, ..ONE },
            ParallelConfig { pipefusion: 2, cfg: 2, ..ONE },
            ParallelConfig { pipefusion: 3, ulysses: 2, ring: 2, ..ONE },
        ] {
            let options = Options {
                parallel,
                pipefusion: PipeFusion { n_patches: Some(3), ..PipeFusion::default() },
                ..Options::new(FloatDType::F32)
            };
            let source = ModelSource::Folder(golden::dir().join(name));
            let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
            let request = Request {
                negative_prompts: vec!["a blue dog".into()],
                height: Some(112),
                width: Some(48),
                num_inference_steps: Some(3),
                guidance_scale: Some(3.5),
                true_cfg_scale: name.starts_with("flux").then_some(2.0),
                max_sequence_length: Some(19),
                resolution_binning: false,
                skip_layers: (name == "sd35").then(|| SkipLayers {
                    blocks: vec![1],
                    scale: 2.0,
                    start: 0.0,
                    stop: 0.9,
                }),
                output: OutputType::Latent,
                ..Request::new("a photo of a red cat")
            };
            let plan = match pipeline.plan(&request) {
                Ok(plan) => plan,
                // a model of one block
                Err(error) => {
                    assert!(name == "pixart-256" && parallel.pipefusion > 1, "{name} {parallel:?}: {error}");
                    continue;
                }
            };
            assert_eq!(plan.n_patches, if parallel.pipefusion == 1 { 1 } else { 3 });
            pipeline.generate(&request, &mut ()).expect("pictures");
            assert_eq!(pipeline.ranks(), plan.memory, "{name} {parallel:?}");
            let weights = pipeline.folder().weights("transformer", None).expect("weights");
            let most = plan.memory.iter().map(|rank| rank.weight_bytes).max().expect("a rank");
            assert!(parallel.pipefusion == 1 || most < weights.n_bytes(), "{name}: {most} bytes are all");
        }
    }
}
