//! A pipeline folder together with where and how its weights are wanted.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::slice::from_ref;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;
use serde::de::DeserializeOwned;
use xdit_core::checkpoint::{LoadReport, Loader, Weights};
use xdit_core::dit::{Dit, TextStates};
use xdit_core::folder::PipelineFolder;
use xdit_core::observer::{Observer, Phase};
use xdit_core::sampler::{self, Flow, Sampler};

use crate::error::ModelError;
use crate::pipeline::encoding::Made;
use crate::pipeline::error::PipelineError;
use crate::pipeline::options::Options;
use crate::text::clip::ClipTextConfig;
use crate::text::t5::{T5Config, T5Encoder};
use crate::text::tokenizer::{Encoded, Tokenizer};
use crate::vae::Vae;
use crate::vae::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};

/// Every block of a transformer, however many there are.
pub const ALL_BLOCKS: Range<usize> = 0..usize::MAX;
/// Characters of a prompt that a message repeats.
const LONGEST_QUOTE: usize = 60;

/// The parts of an opened pipeline.
pub struct Components {
    /// Configurations and checkpoints.
    pub folder: PipelineFolder,
    /// Precision and variant.
    pub options: Options,
    /// Whether there are no checkpoints: see [`Loader::drawn`].
    pub(super) drawn: bool,
    /// What each component came to, where weights are only counted: see [`Loader::dry`].
    counted: Option<Mutex<Vec<LoadReport>>>,
    /// Encoders that are to stay, by component.
    kept: Mutex<HashMap<String, Arc<dyn Any + Send + Sync>>>,
    /// By component; shared with those that only count.
    tokenizers: Arc<Mutex<HashMap<String, Arc<Tokenizer>>>>,
}

impl Components {
    /// Nothing is read.
    pub fn new(folder: PipelineFolder, options: Options) -> Self {
        Self { folder, options, drawn: false, counted: None, kept: Mutex::default(), tokenizers: Arc::default() }
    }

    /// Without checkpoints: weights are random numbers.
    pub fn drawn(self) -> Self {
        Self { drawn: true, ..self }
    }

    /// What the models that `build` makes would hold. They have no weights and must not be used.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn count(
        &self,
        build: impl FnOnce(&Self) -> Result<(), PipelineError>,
    ) -> Result<Vec<LoadReport>, PipelineError> {
        let counted = Mutex::default();
        let tokenizers = Arc::clone(&self.tokenizers);
        let new = Self::new(self.folder.clone(), self.options.clone());
        let dry = Self { counted: Some(counted), tokenizers, drawn: self.drawn, ..new };
        build(&dry)?;
        Ok(dry.counted.and_then(|counted| counted.into_inner().ok()).unwrap_or_default())
    }

    /// `component/config.json`
    ///
    /// # Errors
    /// A file that is missing or does not parse.
    pub fn config<T: DeserializeOwned>(&self, component: &str) -> Result<T, PipelineError> {
        Ok(self.folder.config(component, "config.json")?)
    }

    /// Whether `component` is there and its class is one of `classes`.
    ///
    /// # Errors
    /// It is missing or of another class.
    pub fn expect(&self, component: &str, classes: &'static str) -> Result<(), PipelineError> {
        let found = &self.folder.component(component)?.class;
        if classes.split(" or ").any(|class| class == found) {
            return Ok(());
        }
        Err(PipelineError::UnknownClass { component: component.into(), found: found.clone(), expected: classes })
    }

    /// Whether these numbers of two configurations, of which one component makes what the other takes, are equal.
    ///
    /// # Errors
    /// Two that differ.
    pub fn agree(&self, numbers: &[(&'static str, usize, &'static str, usize)]) -> Result<(), PipelineError> {
        match numbers.iter().find(|(_, made, _, taken)| made != taken) {
            Some((made_by, made, taken_by, taken)) => {
                Err(PipelineError::Disagree { made_by, made: *made, taken_by, taken: *taken })
            }
            None => Ok(()),
        }
    }

    /// The numbers of a text encoder of T5's kind, checked.
    ///
    /// # Errors
    /// A configuration that cannot be read or be right.
    pub fn t5_config(&self, component: &str) -> Result<T5Config, PipelineError> {
        let config: T5Config = self.config(component)?;
        config.check()?;
        Ok(config)
    }

    /// The numbers of a text encoder of CLIP's kind, checked.
    ///
    /// # Errors
    /// A configuration that cannot be read or be right.
    pub fn clip_config(&self, component: &str) -> Result<ClipTextConfig, PipelineError> {
        let config: ClipTextConfig = self.config(component)?;
        config.check()?;
        Ok(config)
    }

    /// The numbers of the decoder, checked.
    ///
    /// # Errors
    /// A configuration that cannot be read or be right.
    pub fn vae_config(&self) -> Result<AutoencoderKlConfig, PipelineError> {
        let config: AutoencoderKlConfig = self.config("vae")?;
        config.check()?;
        Ok(config)
    }

    /// The tokenizer of `component`, which is opened once until an encoder is read: texts are ids by then.
    fn tokenizer(&self, component: &str) -> Result<Arc<Tokenizer>, PipelineError> {
        let mut opened = self.tokenizers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokenizer) = opened.get(component) {
            return Ok(Arc::clone(tokenizer));
        }
        let tokenizer = Arc::new(Tokenizer::open(&self.folder, component)?);
        opened.insert(component.into(), Arc::clone(&tokenizer));
        Ok(tokenizer)
    }

    /// Tokens that CLIP is shown: `model_max_length` of the tokenizer, else as many as the encoder takes. Only a folder for
    /// measurements is without a tokenizer.
    ///
    /// # Errors
    /// More than the encoder takes.
    pub fn clip_limit(&self, tokenizer: &str, config: &ClipTextConfig) -> Result<usize, PipelineError> {
        let most = config.max_position_embeddings;
        if self.drawn {
            return Ok(most);
        }
        match self.tokenizer(tokenizer)?.model_max_length()? {
            Some(n) if n > most => Err(PipelineError::Disagree {
                made_by: "model_max_length of the tokenizer",
                made: n,
                taken_by: "at most max_position_embeddings of the CLIP encoder",
                taken: most,
            }),
            n => Ok(n.unwrap_or(most)),
        }
    }

    /// Pixels per latent pixel along a side.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    pub fn vae_scale(&self) -> Result<usize, PipelineError> {
        Ok(self.config::<AutoencoderKlConfig>("vae")?.scale())
    }

    /// Whether the pipeline has `component`.
    pub fn has(&self, component: &str) -> bool {
        self.folder.component(component).is_ok()
    }

    /// Checks the files of all components before any of them is loaded: that they are there and whole by their headers,
    /// are what their names say, and are not quantised. Warns of what is unusual.
    ///
    /// # Errors
    /// The first file that is not what it should be; a variant that no component has.
    pub fn check_files(&self, observer: &mut dyn Observer) -> Result<(), PipelineError> {
        let variant = self.options.variant.as_deref();
        if let Some(variant) = variant {
            let without = self.folder.without_variant(variant)?;
            if !without.is_empty() {
                let without = without.join(", ");
                observer.warn(&format!("{without}: no variant {variant}, the plain weights are used"));
            }
        }
        for component in self.folder.components() {
            let name = &component.name;
            if !component.is_model() {
                self.folder.check_files(name)?;
                continue;
            }
            let weights = self.folder.check_weights(name, variant)?;
            weights.notes().iter().for_each(|note| observer.warn(note));
            if let (None, Some(found)) = (variant, weights.variant()) {
                observer.warn(&format!("{name} has no plain weights, those of the variant {found} are used"));
            }
        }
        Ok(())
    }

    /// The sampler that `model_index.json` names, with the options of `scheduler_config.json`.
    ///
    /// # Errors
    /// A configuration that cannot be read or is not supported.
    pub fn sampler(&self, n_steps: usize, flow: Flow) -> Result<Box<dyn Sampler>, PipelineError> {
        let config = self.folder.config("scheduler", "scheduler_config.json")?;
        Ok(sampler::from_config(&self.folder.component("scheduler")?.class, &config, n_steps, flow)?)
    }

    /// Token ids of each text, with a warning where one is longer than `limit`. Without a text nothing is read.
    ///
    /// - `vocab_size`: of the encoder, whose table has so many entries
    ///
    /// # Errors
    /// A tokenizer's files that are missing or broken; a token that the encoder does not know.
    pub fn tokens(
        &self,
        component: &str,
        texts: &[&str],
        limit: usize,
        vocab_size: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Encoded>, PipelineError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let tokenizer = self.tokenizer(component)?;
        let mut all = Vec::with_capacity(texts.len());
        for text in texts {
            let encoded = tokenizer.encode(text, limit)?;
            if let Some(cut) = &encoded.cut {
                let (start, more) = match cut.char_indices().nth(LONGEST_QUOTE) {
                    Some((end, _)) => (&cut[..end], " and more"),
                    None => (cut.as_str(), ""),
                };
                observer.warn(&format!(
                    "{component} takes {limit} tokens; this part of the prompt was cut off: {start:?}{more}"
                ));
            }
            if let Some(id) = encoded.ids.iter().copied().find(|id| *id as usize >= vocab_size) {
                let token = tokenizer.token(id).unwrap_or_default();
                return Err(PipelineError::TokenId { tokenizer: component.into(), token, id, vocab_size });
            }
            all.push(encoded);
        }
        Ok(all)
    }

    /// Opens a component's checkpoint, lets `build` read from it, and sees to it that nothing is missing.
    ///
    /// - `ignore`: parts of names of tensors that need not be used
    ///
    /// # Errors
    /// Files or tensors that are missing or do not fit.
    pub fn load<T>(
        &self,
        component: &str,
        device: &Device,
        ignore: &[&str],
        observer: &mut dyn Observer,
        build: impl FnOnce(&Loader<'_>) -> Result<T, ModelError>,
    ) -> Result<T, PipelineError> {
        Ok(self.load_counted(component, device, ignore, observer, build)?.0)
    }

    /// A text encoder: [`load`](Self::load)ed, or the one that was kept.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn encoder<T: Send + Sync + 'static>(
        &self,
        component: &str,
        device: &Device,
        ignore: &[&str],
        observer: &mut dyn Observer,
        build: impl FnOnce(&Loader<'_>) -> Result<T, ModelError>,
    ) -> Result<Arc<T>, PipelineError> {
        if self.counted.is_none() && !self.options.keep_encoders {
            self.tokenizers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept().get(component).cloned();
        if let Some(encoder) = before.and_then(|any| any.downcast().ok()) {
            return Ok(encoder);
        }
        let encoder = Arc::new(self.load(component, device, ignore, observer, build)?);
        if self.options.keep_encoders {
            kept().insert(component.into(), Arc::<T>::clone(&encoder));
        }
        Ok(encoder)
    }

    /// [`load`](Self::load), and the bytes that were read.
    fn load_counted<T>(
        &self,
        component: &str,
        device: &Device,
        ignore: &[&str],
        observer: &mut dyn Observer,
        build: impl FnOnce(&Loader<'_>) -> Result<T, ModelError>,
    ) -> Result<(T, u64), PipelineError> {
        let weights = match self.drawn {
            true => None,
            false => Some(self.folder.weights(component, self.options.variant.as_deref())?),
        };
        observer.begin(Phase::Load, component, weights.as_ref().map_or(0, Weights::n_bytes));
        let (built, report) = {
            let cancelled = Cell::new(false);
            let watcher = RefCell::new(&mut *observer);
            let progress = |done: u64| {
                if watcher.borrow_mut().advance(Phase::Load, done).is_break() {
                    cancelled.set(true);
                }
            };
            let loader = match &weights {
                Some(weights) => Loader::new(weights, device, self.options.dtype),
                None => Loader::drawn(component, device, self.options.dtype),
            };
            let loader = loader.with_progress(&progress);
            let loader = if self.counted.is_some() { loader.dry() } else { loader };
            let built = build(&loader)?;
            let report = loader.finish(ignore)?;
            if cancelled.get() {
                return Err(PipelineError::Cancelled(Phase::Load));
            }
            (built, report)
        };
        observer.end(Phase::Load);
        if !report.unused.is_empty() {
            let n = report.unused.len();
            let shown = report.unused.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
            let more = if n > 4 { ", .." } else { "" };
            observer.warn(&format!("{component}: {n} tensors of the checkpoint are not used: {shown}{more}"));
        }
        let n_bytes = report.bytes;
        if let Some(counted) = &self.counted {
            counted.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        }
        Ok((built, n_bytes))
    }

    /// Opens the transformer's checkpoint and lets `build` read these blocks of it; also says how many bytes it read.
    ///
    /// - `ignore`: as in [`load`](Self::load)
    ///
    /// # Errors
    /// Files or tensors that are missing or do not fit.
    pub fn load_blocks<T: Dit + 'static>(
        &self,
        device: &Device,
        ignore: &[&str],
        blocks: Range<usize>,
        observer: &mut dyn Observer,
        build: impl FnOnce(&Loader<'_>, Range<usize>) -> Result<T, ModelError>,
    ) -> Result<(Box<dyn Dit>, u64), PipelineError> {
        // other stages' blocks are theirs to miss
        let ignore = [ignore, if blocks == ALL_BLOCKS { &[] } else { &["blocks."] }].concat();
        let (dit, n_bytes) = self.load_counted("transformer", device, &ignore, observer, |loader| {
            let loader = loader.clone().quantised(self.options.gemm_quantization);
            build(&loader, blocks)
        })?;
        Ok((Box::new(dit), n_bytes))
    }

    /// Reads the decoder of `vae`.
    ///
    /// # Errors
    /// Files or tensors that are missing or do not fit.
    pub fn vae(&self, device: &Device, observer: &mut dyn Observer) -> Result<Box<dyn Vae>, PipelineError> {
        let config = self.config("vae")?;
        let load = |loader: &Loader<'_>| AutoencoderKl::load(loader, &config);
        Ok(Box::new(self.load("vae", device, AutoencoderKl::UNUSED, observer, load)?))
    }

    /// Reads `component`, a T5 encoder, and encodes texts one after the other.
    ///
    /// - `masked`: padding is not looked at
    ///
    /// # Errors
    /// Files or tensors that are missing or do not fit; a cancelled request.
    pub fn encode_t5(
        &self,
        component: &str,
        device: &Device,
        texts: &[Encoded],
        masked: bool,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Made>, PipelineError> {
        let config: T5Config = self.config(component)?;
        let t5 =
            self.encoder(component, device, T5Encoder::UNUSED, observer, |loader| T5Encoder::load(loader, &config))?;
        each(texts, component, observer, |text| {
            let seen = masked.then(|| vec![text.seen()]);
            Made::states(TextStates { states: t5.forward(from_ref(&text.ids), seen.as_deref()), seen })
        })
    }
}

/// Runs an encoder on one text after the other.
///
/// # Errors
/// A cancelled request.
pub fn each<T>(
    texts: &[Encoded],
    what: &str,
    observer: &mut dyn Observer,
    encode: impl Fn(&Encoded) -> T,
) -> Result<Vec<T>, PipelineError> {
    observer.begin(Phase::Encode, what, texts.len() as u64);
    let mut out = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        out.push(encode(text));
        if observer.advance(Phase::Encode, i as u64 + 1).is_break() {
            return Err(PipelineError::Cancelled(Phase::Encode));
        }
    }
    observer.end(Phase::Encode);
    Ok(out)
}
