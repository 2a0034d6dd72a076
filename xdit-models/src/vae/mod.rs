//! Decoders from latents to pictures.

pub mod autoencoder_kl;
