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

/// Whether all these sizes of a configuration are positive.
pub(crate) fn positive(class: &'static str, sizes: &[(&str, usize)]) -> Result<(), ModelError> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((name, _)) => Err(ModelError::Config { class, what: format!("{name} must be positive") }),
        None => Ok(()),
    }
}
