//! PipeFusion's approximation on one device, as plainly as it can be said: patch `p` of step `t` sees the keys and values
//! of patches up to `p` of this step, and of the others those of step `t - 1`.
//!
//! Nothing here knows of stages, ranks, messages or buffers.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::Tensor;
use xdit_core::comm::CommError;
use xdit_core::dit::{
    Attention, Cond, Ctx, Dit, Inputs, Pass, Qkv, Site, Streams, TextEmbeddings, TokenGrid, attention_scale,
};
use xdit_core::engine::SkipLayers;
use xdit_core::ops;
use xdit_core::sampler::{History, Sampler, Tokens};

/// What to denoise, and how.
pub struct Displaced<'a> {
    /// `[1, img_tokens, channels]`
    pub noise: Tensor<3>,
    /// More of it, for samplers that add some.
    pub more_noise: &'a mut dyn FnMut() -> Tensor<3>,
    /// The picture in tokens.
    pub grid: TokenGrid,
    /// The prompt; with a negative one and the scale of guidance, where there is some.
    pub text: &'a TextEmbeddings,
    /// See above.
    pub negative: Option<(&'a TextEmbeddings, f32)>,
    /// Besides a negative prompt.
    pub skip_layers: Option<&'a SkipLayers>,
    /// For distilled models.
    pub guidance: Option<f32>,
    /// The picture's sides in pixels.
    pub size: [usize; 2],
    /// Lines of tokens of each patch.
    pub patch_rows: &'a [usize],
    /// Steps on the whole picture.
    pub warmup_steps: usize,
    /// xDiT's way with FLUX's text, to see what it would change: the first block of each of its stages, where every patch
    /// takes the text that patch 0 brought and has it go through the stage's blocks again. Empty for our way: only patch 0
    /// takes the text along.
    pub text_anew_at: &'a [usize],
}

/// Keys and values of every patch of an attention call, each by itself.
#[derive(Default)]
struct Memory {
    txt: HashMap<Site, [Tensor<4>; 2]>,
    patches: HashMap<(Site, usize), [Tensor<4>; 2]>,
    /// The text in front of a block, as patch 0 brought it.
    streams: HashMap<usize, Option<Tensor<3>>>,
}

/// Attention over what is remembered.
struct Remembering<'a> {
    memory: &'a mut Memory,
    /// The tokens of each patch.
    patches: &'a [Range<usize>],
    /// The patch at hand; all of them where absent.
    patch: Option<usize>,
}

impl Attention for Remembering<'_> {
    fn begin(&mut self, _pass: &Pass) {
        unreachable!("the engine is not at work here")
    }

    fn joint(&mut self, site: Site, x: Qkv, n_txt: usize) -> Result<Tensor<4>, CommError> {
        for (i, tokens) in self.patches.iter().enumerate() {
            let cut = |x: &Tensor<4>| match self.patch {
                None => x.clone().narrow(2, n_txt + tokens.start, tokens.len()),
                Some(_) => x.clone().narrow(2, n_txt, tokens.len()),
            };
            if self.patch.is_none_or(|patch| patch == i) {
                self.memory.patches.insert((site, i), [cut(&x.k), cut(&x.v)]);
            }
        }
        if n_txt > 0 {
            let cut = |x: &Tensor<4>| x.clone().narrow(2, 0, n_txt);
            self.memory.txt.insert(site, [cut(&x.k), cut(&x.v)]);
        }
        let all = |which: usize| {
            let txt = self.memory.txt.get(&site);
            let patches = (0..self.patches.len()).filter_map(|i| self.memory.patches.get(&(site, i)));
            ops::cat_tokens(txt.into_iter().chain(patches).map(|kv| kv[which].clone()).collect())
        };
        let scale = attention_scale(x.q.dims()[3]);
        Ok(ops::attention(x.q, all(0), all(1), None, scale).out)
    }
}

/// The final latents.
///
/// # Panics
/// Never, with a model whose blocks do not fail.
pub fn displaced(dit: &dyn Dit, sampler: &dyn Sampler, request: Displaced<'_>) -> Tensor<3> {
    let Displaced {
        noise,
        more_noise,
        grid,
        text,
        negative,
        skip_layers,
        guidance,
        size,
        patch_rows,
        warmup_steps,
        text_anew_at,
    } = request;
    let mut at = 0;
    let patches: Vec<Range<usize>> = patch_rows
        .iter()
        .map(|rows| {
            let patch = at..at + rows * grid.cols;
            at = patch.end;
            patch
        })
        .collect();
    let mut latents = noise * sampler.initial_scale();
    let mut histories = vec![History::default(); patches.len()];
    let mut memories: Vec<Memory> = (0..3).map(|_| Memory::default()).collect();
    let n_steps = sampler.timesteps().len();
    for (step, timestep) in sampler.timesteps().iter().copied().enumerate() {
        let noise = sampler.needs_noise(step).then(&mut *more_noise);
        // each with the blocks that it leaves out; those of skip-layer guidance from the step before it counts
        let at = |step: usize| skip_layers.filter(|skip| skip.at(step, n_steps));
        let prompts = [(text, &[][..])].into_iter().chain(negative.map(|(text, _)| (text, &[][..])));
        let without = at(step).or(at(step + 1)).map(|skip| (text, &skip.blocks[..]));
        let passes: Vec<(&TextEmbeddings, &[usize])> = prompts.chain(without).collect();
        let works: Vec<Option<usize>> = match step < warmup_steps {
            true => vec![None],
            false => (0..patches.len()).map(Some).collect(),
        };
        for patch in works {
            let tokens = patch.map_or(0..grid.n_tokens(), |patch| patches[patch].clone());
            let cut = |x: &Tensor<3>| x.clone().narrow(1, tokens.start, tokens.len());
            let mut predictions = Vec::new();
            for ((text, left_out), memory) in passes.iter().zip(&mut memories) {
                let n_txt = text.txt.n_tokens();
                let all = dit.positions(grid, n_txt);
                let positions = all.share(0..n_txt, std::slice::from_ref(&tokens));
                let timesteps = &[timestep];
                let cond: Cond = dit.condition(Inputs { timesteps, text, guidance, size }).remove(0);
                // text that blocks change goes through them once a step
                let first = patch.is_none_or(|patch| patch == 0);
                let with_txt = !dit.spec().joint || first || !text_anew_at.is_empty();
                let img = dit.embed_img(cut(&sampler.model_input(step, latents.clone())), &positions);
                let mut x = Streams::new(with_txt.then(|| dit.embed_txt(text, &cond, &all)), img);
                let mut attn = Remembering { memory, patches: &patches, patch };
                for block in (0..dit.spec().n_blocks).filter(|block| !left_out.contains(block)) {
                    if text_anew_at.contains(&block) && first {
                        attn.memory.streams.insert(block, x.txt.clone());
                    } else if text_anew_at.contains(&block) {
                        x.txt = attn.memory.streams[&block].clone();
                    }
                    x = dit
                        .block(&mut Ctx { attn: &mut attn, positions: &positions }, block, x, &cond)
                        .expect("one device cannot fail");
                }
                predictions.push(dit.head(x, &cond));
            }
            let prediction = match negative {
                None => predictions.remove(0),
                Some((_, scale)) => {
                    let (with, without) = (predictions.remove(0), predictions.remove(0));
                    let guided = without.clone() + (with.clone() - without) * scale;
                    match (predictions.pop(), at(step)) {
                        (Some(skipped), Some(skip)) => guided + (with - skipped) * skip.scale,
                        _ => guided,
                    }
                }
            };
            for (i, patch_tokens) in patches.iter().enumerate() {
                if patch.is_none_or(|patch| patch == i) {
                    let rows = |x: &Tensor<3>| x.clone().narrow(1, patch_tokens.start, patch_tokens.len());
                    let prediction =
                        prediction.clone().narrow(1, patch_tokens.start - tokens.start, patch_tokens.len());
                    let input = Tokens { latents: rows(&latents), prediction, noise: noise.as_ref().map(rows) };
                    let new = sampler.step(step, input, &mut histories[i]);
                    let [b, _, c] = latents.dims();
                    latents = latents.slice_assign([0..b, patch_tokens.clone(), 0..c], new);
                }
            }
        }
    }
    latents
}
