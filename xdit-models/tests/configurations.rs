//! Folders whose files say something else than the published ones in one thing each, and half precision beyond its range,
//! against diffusers.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;
use xdit_attn::Local;
use xdit_core::checkpoint::Loader;
use xdit_core::dit::{Ctx, Dit, Inputs, Streams, TextEmbeddings, TextStates, TokenGrid};
use xdit_core::folder::{PipelineFolder, Source};
use xdit_core::ops::to_f32;
use xdit_models::dit::flux::Flux;
use xdit_models::pipeline::{Content, ModelSource, Options, OutputType, Pipeline, Request};
use xdit_models::text::t5::T5Encoder;
use xdit_testing::golden::{self, Golden, assert_rel_l2};

/// A few steps of f32 sums in another order.
const LATENTS: f64 = 1e-4;
/// Roundings to f16's 11 bits in another order, through a few blocks.
const HALF: f64 = 5e-3;

#[derive(Deserialize)]
struct Case {
    folder: String,
    files: BTreeMap<String, Value>,
    /// Of each checkpoint, tensors and the ones that they are multiples of.
    tensors: BTreeMap<String, BTreeMap<String, (String, f32)>>,
    arguments: Arguments,
}

#[derive(Deserialize)]
struct Arguments {
    prompt: String,
    height: usize,
    width: usize,
    num_inference_steps: usize,
    seed: u64,
    guidance_scale: Option<f32>,
    max_sequence_length: Option<usize>,
}

fn cases() -> BTreeMap<String, Case> {
    let text = std::fs::read_to_string(golden::dir().join("configurations.cases.json")).expect("cases");
    serde_json::from_str(&text).expect("cases")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => std::fs::write(&to, std::fs::read(entry.path()).expect("a file")).expect("written"),
        }
    }
}

impl Case {
    /// The folder with the changes.
    fn build(&self, at: &Path) {
        copy(&golden::dir().join(&self.folder), at);
        for (file, value) in &self.files {
            std::fs::write(at.join(file), value.to_string()).expect("written");
        }
        for (file, changes) in &self.tensors {
            let bytes = std::fs::read(at.join(file)).expect("a checkpoint");
            let all = SafeTensors::deserialize(&bytes).expect("a checkpoint");
            let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> =
                all.iter().map(|(name, x)| (name.into(), (x.shape().to_vec(), x.data().to_vec()))).collect();
            for (name, (like, times)) in changes {
                let x = all.tensor(like).expect("a tensor");
                let times = |x: &[u8]| (f32::from_le_bytes(x.try_into().expect("four bytes")) * times).to_le_bytes();
                let values = x.data().chunks_exact(4).flat_map(times).collect();
                tensors.insert(name.clone(), (x.shape().to_vec(), values));
            }
            let views = tensors
                .iter()
                .map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("f32")));
            let bytes = safetensors::serialize(views, None).expect("serialized");
            std::fs::write(at.join(file), bytes).expect("written");
        }
    }

    fn draw(&self, at: &Path) -> Content {
        self.build(at);
        let source = ModelSource::Folder(at.into());
        let options = Options::new(FloatDType::F32);
        let mut pipeline = Pipeline::open(&source, options, xdit_comm::local::world, &mut ()).expect("a pipeline");
        let Arguments { prompt, height, width, num_inference_steps, seed, guidance_scale, max_sequence_length } =
            &self.arguments;
        let request = Request {
            height: Some(*height),
            width: Some(*width),
            num_inference_steps: Some(*num_inference_steps),
            seed: *seed,
            guidance_scale: *guidance_scale,
            max_sequence_length: *max_sequence_length,
            resolution_binning: false,
            output: OutputType::Latent,
            ..Request::new(prompt)
        };
        pipeline.generate(&request, &mut ()).expect("latents").remove(0).content
    }
}

#[track_caller]
fn check(key: &str) {
    let golden = Golden::open("configurations");
    let dir = tempfile::tempdir().expect("a folder");
    let Content::Latent { dims, values } = cases()[key].draw(dir.path()) else { panic!("not latents") };
    assert_eq!(dims, golden.dims(key));
    let flat = |values: Vec<f32>| {
        let n = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [n]), &Device::flex())
    };
    let want = flat(golden.values(key).into_iter().map(|x| x as f32).collect());
    println!("{key}: {:.1e}", assert_rel_l2(flat(values), want, LATENTS));
}

macro_rules! drawn_as_upstream {
    ($($name:ident: $key:literal,)*) => {
        $(#[test] fn $name() { check($key); })*

        #[test]
        fn every_case_is_drawn() {
            let keys: Vec<_> = cases().into_keys().filter(|key| key != "f16").collect();
            let mut tested = vec![$($key),*];
            tested.sort();
            assert_eq!(keys, tested);
        }
    };
}

drawn_as_upstream! {
    flux_is_stepped_by_the_class_in_the_index: "flux.scheduler_of_another_class",
    a_schedulers_file_needs_no_class_and_null_is_false: "flux.scheduler_without_class",
    flux_takes_flow_sigmas_of_the_scheduler: "flux.flow_sigmas",
    a_whole_clip_model_is_a_text_encoder: "flux.clip_model",
    clip_with_another_activation: "schnell.clip_act",
    of_two_tables_the_encoders_own_counts: "schnell.two_tables",
    dense_act_fn_is_followed: "schnell.t5_act",
    feed_forward_proj_is_followed: "schnell.t5_proj",
    dense_act_fn_beats_feed_forward_proj: "schnell.t5_act_beats_proj",
    second_names_of_t5s_fields_win: "schnell.t5_second_names",
    sd3_with_whole_clip_models: "sd3.clip_models",
    pixart_by_ddim: "pixart.ddim",
    pixart_by_euler: "pixart.euler",
    pixart_by_ddpm: "pixart.ddpm",
    defaults_of_another_class_are_not_taken: "pixart.defaults_of_another_class",
    pixart_with_another_epsilon: "pixart.norm_eps",
    hunyuan_by_ddim: "hunyuan.ddim",
    hunyuan_by_dpm_solver: "hunyuan.solver",
    bert_with_another_activation: "hunyuan.bert_act",
}

fn half<M>(at: &Path, component: &str, unused: &[&str], build: impl FnOnce(&Loader<'_>, &PipelineFolder) -> M) -> M {
    let folder = PipelineFolder::open(Source::Dir(at.into())).expect("a folder");
    let weights = folder.weights(component, None).expect("weights");
    let loader = Loader::new(&weights, &Device::flex(), FloatDType::F16);
    let model = build(&loader, &folder);
    loader.finish(unused).expect("no tensor missing");
    model
}

/// Upstream clips the text at the end of a double block, both streams at the end of a single one.
#[test]
fn flux_stays_within_f16() {
    let (want, inputs) = (Golden::open("configurations"), Golden::open("flux-schnell"));
    let dir = tempfile::tempdir().expect("a folder");
    cases()["f16"].build(dir.path());
    let dit = half(dir.path(), "transformer", &[], |loader, folder| {
        Flux::load(loader, &folder.config("transformer", "config.json").expect("a configuration"), 0..usize::MAX)
            .expect("a model")
    });
    let text = TextEmbeddings {
        txt: TextStates { states: inputs.tensor("transformer.encoder_hidden_states"), seen: None },
        txt_2: None,
        pooled: Some(inputs.tensor("transformer.pooled_projections")),
    };
    let positions = dit.positions(TokenGrid::picture(5, 3), text.txt.n_tokens());
    let inputs_of = Inputs { timesteps: &[704.0], text: &text, guidance: None, size: [80, 48] };
    let cond = dit.condition(inputs_of).remove(0);
    let img = dit.embed_img(inputs.tensor("transformer.hidden_states"), &positions);
    let mut x = Streams::new(Some(dit.embed_txt(&text, &cond, &positions)), img);
    let mut largest = 0.0_f32;
    for i in 0..dit.spec().n_blocks {
        x = dit.block(&mut Ctx { attn: &mut Local, positions: &positions }, i, x, &cond).expect("one device");
        let txt = to_f32(x.txt.clone().expect("the text"));
        largest = largest.max(txt.clone().abs().max().into_scalar());
        let error = assert_rel_l2(txt, want.tensor(&format!("f16.flux.block.{i}.0")), HALF);
        println!("txt {i}: {error:.1e}");
        let error = assert_rel_l2(to_f32(x.img.clone()), want.tensor(&format!("f16.flux.block.{i}.1")), HALF);
        println!("img {i}: {error:.1e}");
    }
    assert_eq!(largest, 65_504.0, "the clip is what is tested");
    println!("out: {:.1e}", assert_rel_l2(dit.head(x, &cond), want.tensor("f16.flux.out"), HALF));
}

/// Upstream keeps the first sum within f16's range and has all others in f32.
#[test]
fn t5_stays_within_f16() {
    let (want, inputs) = (Golden::open("configurations"), Golden::open("flux-schnell"));
    let dir = tempfile::tempdir().expect("a folder");
    cases()["f16"].build(dir.path());
    let t5 = half(dir.path(), "text_encoder_2", T5Encoder::UNUSED, |loader, folder| {
        T5Encoder::load(loader, &folder.config("text_encoder_2", "config.json").expect("a configuration"))
            .expect("a model")
    });
    let mut n = 0;
    let last = t5.forward_each(&inputs.ids("ids.t5.plain"), None, |i, states| {
        let error = assert_rel_l2(to_f32(states.clone()), want.tensor(&format!("f16.t5.{i}")), HALF);
        println!("t5 {i}: {error:.1e}");
        n += 1;
    });
    assert_eq!(last.dtype(), DType::F16);
    println!("t5 last: {:.1e}", assert_rel_l2(to_f32(last), want.tensor(&format!("f16.t5.{n}")), HALF));
}
