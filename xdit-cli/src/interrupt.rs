//! Ctrl-C.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit code of an interrupted program, as shells know it.
pub const EXIT_CODE: u8 = 130;

/// Whether the user wants the program to end.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the first SIGINT or SIGTERM is noted here, and the second ends the program at once.
    ///
    /// # Errors
    /// A system that refuses it.
    pub fn listen() -> io::Result<Self> {
        let Self(raised) = Self::new(false);
        for signal in [SIGINT, SIGTERM] {
            // in this order: the first signal finds the flag not yet set
            flag::register_conditional_shutdown(signal, EXIT_CODE.into(), Arc::clone(&raised))?;
            flag::register(signal, Arc::clone(&raised))?;
        }
        Ok(Self(raised))
    }

    /// Without any signal.
    pub fn new(raised: bool) -> Self {
        Self(Arc::new(AtomicBool::new(raised)))
    }

    pub fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
