//! Forward passes of a stage: one for each prompt that a rank predicts with, and that of skip-layer guidance.

use std::borrow::Cow;
use std::sync::Arc;

use burn::tensor::Tensor;

use super::guidance::{Cfg, SkipLayers};
use super::messages::StreamShapes;
use super::picture::{Denoise, Team};
use crate::comm::CommError;
use crate::dit::{Cond, Ctx, Dit, Inputs, Pass, Positions, Streams, TextEmbeddings};
use crate::layout::{Shares, TokenLayout};
use crate::schedule::Work;

/// One forward pass through the blocks.
#[derive(Clone, Copy)]
struct Branch<'r> {
    /// Index into [`Passes::prompts`].
    prompt: usize,
    /// What it leaves out.
    skip: Option<&'r SkipLayers>,
}

/// An encoded prompt, and what follows from it for this rank before the first step.
struct Prompt<'r> {
    text: Cow<'r, TextEmbeddings>,
    shares: Arc<Shares>,
    /// Of all tokens.
    all: Positions,
    /// Of this rank's tokens, of the whole picture and of each patch.
    whole: Positions,
    patches: Vec<Positions>,
    /// By step; none where this rank has no pass with the prompt.
    conds: Vec<Cond>,
    /// This rank's share of the text in tokens, where this stage needs it.
    txt: Option<Tensor<3>>,
    /// How many prompts these are, one after the other in each batch.
    n: usize,
}

/// A stage's passes of a picture.
pub struct Passes<'t, 'r> {
    dit: &'t dyn Dit,
    /// The prompt, the negative one where there is guidance, and both as one where they go through the blocks together.
    prompts: Vec<Prompt<'r>>,
    /// Those of them that this rank predicts with.
    mine: Vec<usize>,
    cfg: Option<Cfg<'r>>,
    n_steps: usize,
    batch: usize,
    is_staged: bool,
    is_first_stage: bool,
}

impl<'t, 'r> Passes<'t, 'r> {
    /// - `timesteps`: of all steps
    pub fn new(
        dit: &'t dyn Dit,
        team: &Team<'t>,
        timesteps: &[f32],
        request: &Denoise<'r>,
        layout: &TokenLayout,
        batch: usize,
    ) -> Self {
        let texts = std::iter::once(request.text).chain(request.cfg.map(|cfg| cfg.negative));
        let mut prompts: Vec<Prompt<'r>> = Vec::new();
        for text in texts {
            // prompts of one length have the same tables
            let same = prompts.iter().find(|prompt| prompt.text.txt.n_tokens() == text.txt.n_tokens());
            let prompt = same.map(|same| same.with(Cow::Borrowed(text)));
            prompts.push(prompt.unwrap_or_else(|| Prompt::new(dit, team, text, request, layout)));
        }
        let mut passes = Self {
            dit,
            prompts,
            mine: Vec::new(),
            cfg: request.cfg,
            n_steps: timesteps.len(),
            batch,
            is_staged: team.stages.size() > 1,
            is_first_stage: team.stages.rank() == 0,
        };
        // the prompts are dealt out among the branches of guidance
        passes.mine = (0..passes.prompts.len()).skip(team.cfg.rank()).step_by(team.cfg.size()).collect();
        if team.joins_prompts && !passes.is_staged && batch == 1 {
            passes.join();
        }
        let needed = |prompt: usize| (0..timesteps.len()).any(|i| passes.branches(i).any(|b| b.prompt == prompt));
        let needed: Vec<bool> = (0..passes.prompts.len()).map(needed).collect();
        for prompt in passes.prompts.iter_mut().zip(needed).filter_map(|(prompt, needed)| needed.then_some(prompt)) {
            prompt.condition(dit, timesteps, request);
            if passes.is_first_stage || !dit.spec().joint {
                prompt.txt = Some(prompt.embed(dit, team, 0));
            }
        }
        passes
    }

    /// Makes one prompt of the two that this rank predicts with, if they are of one shape: before anything is computed of
    /// them, so that each is computed once.
    fn join(&mut self) {
        let &[first, second] = &self.mine[..] else { return };
        if let Some(joined) = self.prompts[first].joined(&self.prompts[second]) {
            self.mine = vec![self.prompts.len()];
            self.prompts.push(joined);
        }
    }

    /// This rank's passes of a step: one per prompt that it predicts with, and on every rank one without the blocks of
    /// skip-layer guidance.
    ///
    /// Where there are stages, that one begins a step before it counts, so that it finds a previous step's keys and values.
    fn branches(&self, step: usize) -> impl Iterator<Item = Branch<'r>> {
        let early = if self.is_staged { self.skip_layers(step + 1) } else { None };
        let without = self.skip_layers(step).or(early);
        let mine = self.mine.iter().map(|&prompt| Branch { prompt, skip: None });
        mine.chain(without.map(|skip| Branch { prompt: 0, skip: Some(skip) }))
    }

    /// How many there are.
    pub fn n_branches(&self, step: usize) -> usize {
        self.branches(step).count()
    }

    /// How many of them are predictions with a prompt.
    pub fn n_mine(&self) -> usize {
        self.mine.len()
    }

    /// Skip-layer guidance, where it takes place at this step.
    pub fn skip_layers(&self, step: usize) -> Option<&'r SkipLayers> {
        self.cfg.and_then(|cfg| cfg.skip_layers).filter(|skip| skip.at(step, self.n_steps))
    }

    /// Whether the text goes along from stage to stage: text that blocks change, once a step, with the first patch.
    pub fn takes_txt_along(&self, work: Work) -> bool {
        self.dit.spec().joint && work.is_first()
    }

    /// The shapes of what comes in front of a block.
    pub fn shapes(&self, work: Work, team: &Team<'_>, block: usize) -> StreamShapes {
        let (spec, shares, rank) = (self.dit.spec(), &self.prompts[0].shares, team.sequence.rank());
        let shape = |n| [self.batch, n, spec.d_model()];
        StreamShapes {
            txt: self.takes_txt_along(work).then(|| shape(shares.txt(rank).len())),
            img: shape(shares.n_img(work.patch, rank)),
            n_skips: self.dit.skips_before(block),
        }
    }

    /// Takes every pass through this stage's blocks.
    ///
    /// - `latents`: on the first stage
    /// - `inbox`: on the others, what came from the stage before
    /// - `progress`: is told after each block how many of how many are done
    pub fn compute(
        &self,
        team: &mut Team<'_>,
        work: Work,
        latents: Option<Tensor<3>>,
        inbox: Vec<Streams>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Streams>, CommError> {
        let mut inbox = inbox.into_iter();
        let (mut done, mut out) = (0, Vec::new());
        let total = self.branches(work.step).map(|branch| branch.blocks(team).count()).sum();
        for (i, branch) in self.branches(work.step).enumerate() {
            let prompt = &self.prompts[branch.prompt];
            let (positions, cond) = (prompt.positions(work.patch), &prompt.conds[work.step]);
            let mut x = match &latents {
                Some(latents) => {
                    let latents = if prompt.n == 1 { latents.clone() } else { latents.clone().repeat_dim(0, prompt.n) };
                    Streams::new(None, self.dit.embed_img(latents, positions))
                }
                None => inbox.next().expect("the message of this work was received"),
            };
            let is_here = !self.dit.spec().joint || (self.is_first_stage && work.is_first());
            if is_here {
                x.txt = match self.dit.spec().txt_each_step {
                    true => Some(prompt.embed(self.dit, team, work.step)),
                    false => prompt.txt.clone(),
                };
            }
            let Work { step, patch } = work;
            team.attn.begin(&Pass { step, prompt: i, patch, shares: Arc::clone(&prompt.shares) });
            for block in branch.blocks(team) {
                let mut ctx = Ctx { attn: &mut *team.attn, positions };
                x = self.dit.block(&mut ctx, block, x, cond)?;
                done += 1;
                team.sequence.beat();
                progress(done, total);
            }
            out.push(x);
        }
        Ok(out)
    }

    /// The prediction of each pass.
    pub fn predict(&self, step: usize, streams: Vec<Streams>) -> Vec<Tensor<3>> {
        let head = |(branch, x): (Branch<'_>, _)| self.dit.head(x, &self.prompts[branch.prompt].conds[step]);
        self.branches(step).zip(streams).map(head).collect()
    }
}

impl<'r> Branch<'r> {
    /// The stage's blocks that it goes through.
    fn blocks(self, team: &Team<'_>) -> impl Iterator<Item = usize> + use<'r> {
        team.blocks.clone().filter(move |block| self.skip.is_none_or(|skip| !skip.blocks.contains(block)))
    }
}

impl<'r> Prompt<'r> {
    fn new(
        dit: &dyn Dit,
        team: &Team<'_>,
        text: &'r TextEmbeddings,
        request: &Denoise<'_>,
        layout: &TokenLayout,
    ) -> Self {
        let (n_txt, joint, rank) = (text.txt.n_tokens(), dit.spec().joint, team.sequence.rank());
        let shares = Shares::new(layout, if joint { n_txt } else { 0 }, team.sequence.size(), team.ulysses);
        let txt = if joint { shares.txt(rank) } else { 0..n_txt };
        let (all, bands) = (dit.positions(request.grid, n_txt), shares.bands(rank));
        Self {
            text: Cow::Borrowed(text),
            whole: all.share(txt.clone(), &bands),
            patches: bands.iter().map(|band| all.share(txt.clone(), std::slice::from_ref(band))).collect(),
            all,
            shares: Arc::new(shares),
            conds: Vec::new(),
            txt: None,
            n: 1,
        }
    }

    /// Another text of the same length.
    fn with(&self, text: Cow<'r, TextEmbeddings>) -> Self {
        Self {
            text,
            shares: Arc::clone(&self.shares),
            all: self.all.clone(),
            whole: self.whole.clone(),
            patches: self.patches.clone(),
            conds: Vec::new(),
            txt: None,
            n: 1,
        }
    }

    /// This one and another as a batch; not if they differ in shape.
    fn joined(&self, other: &Self) -> Option<Self> {
        let text = self.text.joined(&other.text)?;
        Some(Self { n: self.n + other.n, ..self.with(Cow::Owned(text)) })
    }

    fn condition(&mut self, dit: &dyn Dit, timesteps: &[f32], request: &Denoise<'_>) {
        let Denoise { guidance, size, .. } = *request;
        self.conds = dit.condition(Inputs { timesteps, text: &self.text, guidance, size });
    }

    /// This rank's share of the text in tokens.
    fn embed(&self, dit: &dyn Dit, team: &Team<'_>, step: usize) -> Tensor<3> {
        let txt = dit.embed_txt(&self.text, &self.conds[step], &self.all);
        match dit.spec().joint && team.sequence.size() > 1 {
            true => {
                let band = self.shares.txt(team.sequence.rank());
                txt.narrow(1, band.start, band.len())
            }
            false => txt,
        }
    }

    fn positions(&self, patch: Option<usize>) -> &Positions {
        patch.map_or(&self.whole, |patch| &self.patches[patch])
    }
}
