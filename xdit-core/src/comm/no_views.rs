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

/// Memory that was set aside for a part: nobody else's to fill.
#[derive(Debug)]
pub enum Place {}

impl Place {
    /// For a part of this form.
    pub fn new(_form: &Form, _device: &Device) -> Option<Self> {
        None
    }

    /// Where this part is.
    pub fn of(_part: Part) -> Option<Self> {
        None
    }

    /// What is there.
    pub fn part(self) -> Part {
        match self {}
    }
}

impl Offer {
    /// What was offered.
    pub fn form(&self) -> &Form {
        match *self {}
    }

    /// Brings it to a device.
    pub fn fetch(self, _place: Option<&Place>, _device: &Device) -> Option<Part> {
        match self {}
    }
}

/// Whether these are NVIDIA GPUs of which each reads every other's memory.
pub fn reach_each_other(_devices: &[Device]) -> bool {
    false
}
