//! What can be wrong with a model.

use xdit_core::checkpoint::LoadError;

/// Why a model could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A configuration that contradicts itself or asks for what is not built.
    #[error("{class} config: {what}")]
    Config {
        /// The upstream class whose configuration it is.
        class: &'static str,
        /// The fields and the numbers.
        what: String,
    },
}

/// Beyond the widths, vocabularies and sides of any model. Products of three such sizes still fit a `usize`.
const MAX_SIZE: usize = 1 << 20;
/// Beyond the layers, heads' widths and kernels of any model.
const MAX_COUNT: usize = 1 << 10;

/// Whether all these sizes of a configuration are positive, and not out of all measure.
pub(crate) fn positive(class: &'static str, sizes: &[(&str, usize)]) -> Result<(), ModelError> {
    within(class, sizes, 1, MAX_SIZE)
}

/// Whether all these are numbers of things of which a model has few: layers, latent pixels of a token.
pub(crate) fn few(class: &'static str, counts: &[(&str, usize)]) -> Result<(), ModelError> {
    within(class, counts, 0, MAX_COUNT)
}

fn within(class: &'static str, sizes: &[(&str, usize)], min: usize, max: usize) -> Result<(), ModelError> {
    let what = match sizes.iter().find(|(_, size)| !(min..=max).contains(size)) {
        Some((name, 0)) => format!("{name} must be positive"),
        Some((name, size)) => format!("{name}={size} is beyond {max}"),
        None => return Ok(()),
    };
    Err(ModelError::Config { class, what })
}

/// Whether this is what is added to variances: a small number.
pub(crate) fn epsilon(class: &'static str, name: &str, eps: f64) -> Result<(), ModelError> {
    match (0.0..1.0).contains(&eps) {
        true => Ok(()),
        false => Err(ModelError::Config { class, what: format!("{name}={eps} must be at least 0 and less than 1") }),
    }
}
