//! What `views.rs` offers, for a program that is built without GPUs: nothing.

use burn::tensor::Device;

use super::parts::{Form, Part};

/// A part that other devices of the process may fetch from where it is: there are none.
#[derive(Debug)]
pub enum Offer {}

impl Part {
    /// Lets other devices fetch it.
    pub fn offer(&self) -> Option<Offer> {
        None
    }
}

impl Offer {
    /// What was offered.
    pub fn form(&self) -> &Form {
        match *self {}
    }

    /// Brings it to a device.
    pub fn fetch(self, _place: Option<&Part>, _device: &Device) -> Option<Part> {
        match self {}
    }
}

/// Whether these are NVIDIA GPUs of which each reads every other's memory.
pub fn reach_each_other(_devices: &[Device]) -> bool {
    false
}
