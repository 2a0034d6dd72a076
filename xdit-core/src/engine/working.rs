//! What a rank has in its hands while it denoises a picture.

use std::collections::VecDeque;
use std::ops::Range;

use burn::tensor::Tensor;

use super::{Cfg, Denoise, SkipLayers, Team, guide};
use crate::comm::{CommError, Communicator, Posted, Sent, even_sizes};
use crate::dit::{Cond, Ctx, Dit, Inputs, Pass, Places, Streams, TextEmbeddings};
use crate::layout::TokenLayout;
use crate::observer::Observer;
use crate::sampler::{History, Rows, Sampler};
use crate::schedule::{Action, Message, Payload, Work};

/// Carries out the actions of a schedule.
pub struct Working<'t, 'r> {
    dit: &'t dyn Dit,
    team: Team<'t>,
    sampler: &'t dyn Sampler,
    more_noise: &'r mut dyn FnMut() -> Tensor<3>,
    guidance: Option<f32>,
    size: [usize; 2],
    cfg: Option<Cfg<'r>>,
    layout: TokenLayout,
    /// The prompt, and the negative one where there is guidance.
    prompts: Vec<Prompt>,
    /// Those of them that this rank predicts with.
    mine: Vec<usize>,
    /// This rank's band of each patch, as the sampler left it.
    latents: Vec<Tensor<3>>,
    histories: Vec<History>,
    /// What the step at hand is conditioned on, for each pass.
    conds: Vec<Cond>,
    /// The text of each pass, where this stage embeds it.
    txts: Vec<Option<Tensor<3>>>,
    /// Came from the stage before, for each pass.
    inbox: Vec<Streams>,
    /// Goes to the next stage, for each pass.
    outbox: Vec<Streams>,
    /// On the last stage, for each pass.
    predictions: Vec<Tensor<3>>,
    /// The step's noise, of the whole picture.
    noise: Option<Tensor<3>>,
    /// Messages to come, in their order; the next one is posted.
    receives: VecDeque<(usize, Message)>,
    posted: Vec<Posted<3>>,
    sent: Vec<Sent>,
}

/// One forward pass through the blocks.
#[derive(Clone, Copy)]
struct Branch {
    /// Index into [`Working::prompts`].
    prompt: usize,
    /// Without the blocks of skip-layer guidance.
    skips: bool,
}

/// A rank's share of an encoded prompt.
struct Prompt {
    text: TextEmbeddings,
    /// Where its tokens stand, of the whole picture and of each patch.
    whole: Places,
    patches: Vec<Places>,
}

impl<'t, 'r> Working<'t, 'r> {
    pub fn new(
        dit: &'t dyn Dit,
        team: Team<'t>,
        sampler: &'t dyn Sampler,
        request: Denoise<'r>,
        n_patches: usize,
        actions: &[Action],
    ) -> Result<Self, CommError> {
        let Denoise { noise, more_noise, grid, size, text, guidance, cfg } = request;
        let layout = TokenLayout::new(grid, n_patches);
        let bands: Vec<_> = (0..n_patches).map(|patch| band(&layout, patch, team.sequence)).collect();
        let prompt = |text: &TextEmbeddings| {
            let n_txt = text.txt.n_tokens();
            let txt = if dit.spec().joint { txt_band(n_txt, team.sequence) } else { 0..n_txt };
            let places = dit.place(grid, n_txt);
            Prompt {
                text: TextEmbeddings { txt: text.txt.band(txt.clone()), ..text.clone() },
                whole: places.bands(txt.clone(), &bands),
                patches: bands.iter().map(|band| places.band(txt.clone(), band.clone())).collect(),
            }
        };
        let prompts: Vec<Prompt> =
            [Some(text), cfg.map(|cfg| cfg.negative)].into_iter().flatten().map(prompt).collect();
        // the prompts are dealt out among the branches
        let mine = (0..prompts.len()).skip(team.cfg.rank()).step_by(team.cfg.size()).collect();
        let noise = match sampler.initial_scale() {
            1.0 => noise,
            scale => noise * scale,
        };
        let receives = actions.iter().filter_map(|action| match action {
            Action::Receive { from, message } => Some((*from, *message)),
            _ => None,
        });
        let mut working = Self {
            latents: bands.iter().map(|band| noise.clone().narrow(1, band.start, band.len())).collect(),
            histories: vec![History::default(); n_patches],
            receives: receives.collect(),
            dit,
            team,
            sampler,
            more_noise,
            guidance,
            size,
            cfg,
            layout,
            prompts,
            mine,
            conds: Vec::new(),
            txts: Vec::new(),
            inbox: Vec::new(),
            outbox: Vec::new(),
            predictions: Vec::new(),
            noise: None,
            posted: Vec::new(),
            sent: Vec::new(),
        };
        working.post()?;
        Ok(working)
    }

    /// This rank's passes of a step: one per prompt that it predicts with, and on every rank one without the blocks of
    /// skip-layer guidance.
    ///
    /// Where there are stages, that one begins a step before it counts, so that it finds a previous step's keys and values.
    fn branches(&self, step: usize) -> Vec<Branch> {
        let mut all: Vec<_> = self.mine.iter().map(|&prompt| Branch { prompt, skips: false }).collect();
        let staged = self.team.stages.size() > 1;
        if self.skip_layers(step).is_some() || (staged && self.skip_layers(step + 1).is_some()) {
            all.push(Branch { prompt: 0, skips: true });
        }
        all
    }

    /// Skip-layer guidance, where it takes place at this step.
    fn skip_layers(&self, step: usize) -> Option<&'r SkipLayers> {
        let n_steps = self.sampler.timesteps().len();
        self.cfg.and_then(|cfg| cfg.skip_layers).filter(|skip| skip.at(step, n_steps))
    }

    fn is_last(&self) -> bool {
        self.team.stages.rank() + 1 == self.team.stages.size()
    }

    /// Starts to receive the next message, whenever it comes.
    fn post(&mut self) -> Result<(), CommError> {
        let Some((from, message)) = self.receives.front().copied() else { return Ok(()) };
        let n = match message.payload {
            Payload::Latents => 1,
            Payload::Hidden => {
                let with_txt = usize::from(self.dit.spec().joint && is_first(message.work));
                let skips = self.dit.skips_before(self.team.blocks.start);
                self.branches(message.work.step).len() * (1 + with_txt + skips)
            }
        };
        self.posted = (0..n).map(|_| self.team.stages.recv(from)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Waits for a message, the next one to come.
    pub fn receive(&mut self, message: Message) -> Result<(), CommError> {
        let posted = std::mem::take(&mut self.posted);
        let mut tensors = posted.into_iter().map(Posted::wait).collect::<Result<VecDeque<_>, _>>()?;
        self.receives.pop_front();
        self.post()?;
        let mut next = || tensors.pop_front().expect("as many as were posted");
        match message.payload {
            Payload::Latents => self.set_latents(message.work.patch, next()),
            Payload::Hidden => {
                let with_txt = self.dit.spec().joint && is_first(message.work);
                let n_skips = self.dit.skips_before(self.team.blocks.start);
                let n = self.branches(message.work.step).len();
                self.inbox = (0..n)
                    .map(|_| {
                        let txt = with_txt.then(&mut next);
                        Streams { txt, img: next(), skips: (0..n_skips).map(|_| next()).collect() }
                    })
                    .collect();
            }
        }
        Ok(())
    }

    /// Sends what was computed last; never waits for its receiver.
    pub fn send(&mut self, to: usize, message: Message) -> Result<(), CommError> {
        // those of the last time have been read by now, or are about to be
        std::mem::take(&mut self.sent).into_iter().try_for_each(Sent::wait)?;
        let tensors: Vec<Tensor<3>> = match message.payload {
            Payload::Latents => vec![self.latents(message.work.patch)],
            Payload::Hidden => {
                let joint = self.dit.spec().joint;
                let flat = |x: Streams| x.txt.filter(|_| joint).into_iter().chain([x.img]).chain(x.skips);
                self.outbox.drain(..).flat_map(flat).collect()
            }
        };
        self.sent = tensors.into_iter().map(|x| self.team.stages.send(x, to)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// This stage's blocks.
    pub fn compute(&mut self, work: Work) -> Result<(), CommError> {
        let (first_stage, last_stage, joint) = (self.team.stages.rank() == 0, self.is_last(), self.dit.spec().joint);
        let branches = self.branches(work.step);
        if is_first(work) {
            let timestep = self.sampler.timesteps()[work.step];
            let (guidance, size) = (self.guidance, self.size);
            let cond = |branch: &Branch| {
                let Prompt { text, whole: places, .. } = &self.prompts[branch.prompt];
                self.dit.condition(Inputs { places, timestep, text, guidance, size })
            };
            self.conds = branches.iter().map(cond).collect();
            // a text that blocks change comes from the stage before
            let embed = |branch: &Branch| {
                (first_stage || !joint).then(|| self.dit.embed_txt(&self.prompts[branch.prompt].text))
            };
            self.txts = branches.iter().map(embed).collect();
        }
        let mut inbox = std::mem::take(&mut self.inbox).into_iter();
        let input = first_stage.then(|| self.sampler.model_input(work.step, self.latents(work.patch)));
        for (i, branch) in branches.iter().enumerate() {
            let prompt = &self.prompts[branch.prompt];
            let places = work.patch.map_or(&prompt.whole, |patch| &prompt.patches[patch]);
            let mut x = match &input {
                Some(input) => Streams::new(None, self.dit.embed_img(input.clone(), places)),
                None => inbox.next().expect("the message of this work was received"),
            };
            // text that blocks change goes through them once a step, with the first patch
            if (first_stage && is_first(work)) || !joint {
                x.txt.clone_from(&self.txts[i]);
            }
            let cond = Cond { places: places.clone(), ..self.conds[i].clone() };
            let pass = Pass { step: work.step, prompt: i, patch: work.patch, rows: self.rows() };
            self.team.attn.begin(&pass);
            let mut ctx = Ctx { attn: &mut *self.team.attn };
            let skip = self.cfg.and_then(|cfg| cfg.skip_layers).filter(|_| branch.skips);
            for block in self.team.blocks.clone() {
                if skip.is_none_or(|skip| !skip.blocks.contains(&block)) {
                    x = self.dit.block(&mut ctx, block, x, &cond)?;
                }
            }
            match last_stage {
                true => self.predictions.push(self.dit.head(x, &cond)),
                false => self.outbox.push(x),
            }
        }
        Ok(())
    }

    /// Guidance and the sampler's step, on the last stage.
    pub fn step(&mut self, work: Work) -> Result<(), CommError> {
        let step = work.step;
        let mut predictions = std::mem::take(&mut self.predictions);
        let skipped = (predictions.len() > self.mine.len()).then(|| predictions.pop()).flatten();
        let prediction = match &self.cfg {
            None => predictions.pop().expect("a prediction"),
            Some(cfg) => {
                // every branch gets all predictions
                let both = self.team.cfg.all_gather(Tensor::cat(predictions, 0), 0)?;
                let batch = both.dims()[0] / 2;
                let (with, without) = (both.clone().narrow(0, 0, batch), both.narrow(0, batch, batch));
                let guided = guide(with.clone(), without, cfg, self.team.sequence)?;
                match (skipped, self.skip_layers(step)) {
                    (Some(skipped), Some(skip)) => guided + (with - skipped) * skip.scale,
                    _ => guided,
                }
            }
        };
        if is_first(work) {
            self.noise = self.sampler.needs_noise(step).then(|| (self.more_noise)());
        }
        let mut at = 0;
        for patch in self.patches(work.patch) {
            let band = band(&self.layout, patch, self.team.sequence);
            let rows = Rows {
                latents: self.latents[patch].clone(),
                prediction: prediction.clone().narrow(1, at, band.len()),
                noise: self.noise.as_ref().map(|noise| noise.clone().narrow(1, band.start, band.len())),
            };
            self.latents[patch] = self.sampler.step(step, rows, &mut self.histories[patch]);
            at += band.len();
        }
        Ok(())
    }

    /// Lets the observer see this rank's latents, where they are at hand.
    pub fn show(&self, step: usize, observer: &mut dyn Observer) {
        if self.is_last() {
            observer.latents(step, &self.latents(None));
        }
    }

    /// The whole picture's latents, on every rank.
    pub fn finish(self) -> Result<Tensor<3>, CommError> {
        self.sent.into_iter().try_for_each(Sent::wait)?;
        let (stages, sequence) = (self.team.stages, self.team.sequence);
        let last = stages.size() - 1;
        let whole = match stages.rank() == last {
            true => {
                let gather = |patch: Tensor<3>| sequence.all_gather(patch, 1);
                Some(cat(self.latents.into_iter().map(gather).collect::<Result<_, _>>()?))
            }
            false => None,
        };
        stages.broadcast(last, whole)
    }

    fn patches(&self, patch: Option<usize>) -> Range<usize> {
        patch.map_or(0..self.layout.n_patches(), |patch| patch..patch + 1)
    }

    fn latents(&self, patch: Option<usize>) -> Tensor<3> {
        cat(self.latents[self.patches(patch)].to_vec())
    }

    fn set_latents(&mut self, patch: Option<usize>, latents: Tensor<3>) {
        let mut at = 0;
        for patch in self.patches(patch) {
            let n = band(&self.layout, patch, self.team.sequence).len();
            self.latents[patch] = latents.clone().narrow(1, at, n);
            at += n;
        }
    }

    /// See [`Pass::rows`].
    fn rows(&self) -> Vec<usize> {
        let (sequence, ulysses) = (self.team.sequence, self.team.ulysses);
        let first = sequence.rank() / ulysses * ulysses;
        let rows = |patch| self.layout.bands(patch, first..first + ulysses, sequence.size()).len();
        (0..self.layout.n_patches()).map(rows).collect()
    }
}

/// Whether this is the first that a step computes.
fn is_first(work: Work) -> bool {
    work.patch.is_none_or(|patch| patch == 0)
}

/// This rank's band of a patch.
fn band(layout: &TokenLayout, patch: usize, sequence: &dyn Communicator) -> Range<usize> {
    layout.bands(patch, sequence.rank()..sequence.rank() + 1, sequence.size())
}

/// This rank's band of the text.
fn txt_band(n: usize, sequence: &dyn Communicator) -> Range<usize> {
    let sizes = even_sizes(n, sequence.size());
    let start = sizes[..sequence.rank()].iter().sum();
    start..start + sizes[sequence.rank()]
}

fn cat(mut parts: Vec<Tensor<3>>) -> Tensor<3> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}
