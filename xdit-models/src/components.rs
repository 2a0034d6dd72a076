//! A pipeline folder together with where and how its weights are wanted.

use std::cell::{Cell, RefCell};

use serde::de::DeserializeOwned;
use xdit_core::checkpoint::Loader;
use xdit_core::folder::PipelineFolder;
use xdit_core::observer::{Observer, Phase};

use crate::autoencoder_kl::AutoencoderKl;
use crate::error::ModelError;
use crate::pipeline::{Options, PipelineError};

/// The parts of an opened pipeline.
pub struct Components {
    /// Configurations and checkpoints.
    pub folder: PipelineFolder,
    /// Device and precision.
    pub options: Options,
}

impl Components {
    /// Nothing is read.
    pub fn new(folder: PipelineFolder, options: Options) -> Self {
        Self { folder, options }
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

    /// Opens a component's checkpoint, lets `build` read from it, and sees to it that nothing is missing.
    ///
    /// - `ignore`: parts of names of tensors that need not be used
    ///
    /// # Errors
    /// Files or tensors that are missing or do not fit.
    pub fn load<T>(
        &self,
        component: &str,
        ignore: &[&str],
        observer: &mut dyn Observer,
        build: impl FnOnce(&Loader<'_>) -> Result<T, ModelError>,
    ) -> Result<T, PipelineError> {
        let weights = self.folder.weights(component, self.options.variant.as_deref())?;
        observer.begin(Phase::Load, component, weights.n_bytes());
        let (built, report) = {
            let cancelled = Cell::new(false);
            let watcher = RefCell::new(&mut *observer);
            let progress = |done: u64| {
                if watcher.borrow_mut().advance(Phase::Load, done).is_break() {
                    cancelled.set(true);
                }
            };
            let loader = Loader::new(&weights, &self.options.device, self.options.dtype).with_progress(&progress);
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
        Ok(built)
    }

    /// Reads the decoder of `vae`.
    ///
    /// # Errors
    /// Files or tensors that are missing or do not fit.
    pub fn vae(&self, observer: &mut dyn Observer) -> Result<AutoencoderKl, PipelineError> {
        let config = self.config("vae")?;
        self.load("vae", AutoencoderKl::UNUSED, observer, |loader| AutoencoderKl::load(loader, &config))
    }
}
