//! `AutoencoderKL`: latents to pictures, for Stable Diffusion and FLUX.
//!
//! Mirrors `src/diffusers/models/autoencoders/autoencoder_kl.py` and `Decoder` in `vae.py`.

use std::ops::ControlFlow;

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Deserializer};
use xdit_core::checkpoint::{LoadError, Loader};
use xdit_core::comm::CommError;
use xdit_core::dit::attention_scale;
use xdit_core::ops::{
    Conv2d, GroupNorm, Linear, attention, merge_heads, pixels_to_tokens, split_heads, to_dtype, tokens_to_pixels,
    upsample_nearest_2x,
};

use crate::error::{ModelError, few, positive};
use crate::vae::bands::{BandError, Bands, Widened};
use crate::vae::tiles::{Cancelled, Tiles, Tiling};
use crate::vae::{Factors, Vae};

/// `vae/config.json`; field names and defaults are the checkpoint's.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Channels of a picture.
    pub out_channels: usize,
    /// Kinds of the up blocks, all `UpDecoderBlock2D`.
    pub up_block_types: Vec<String>,
    /// Channels at each resolution, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Resnets in a block of the encoder; the decoder's blocks have one more.
    pub layers_per_block: usize,
    /// Activation, always `silu`.
    pub act_fn: String,
    /// Channels of latents.
    pub latent_channels: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Side of the pictures of the training, and of a tile; a number or a list that begins with it.
    #[serde(deserialize_with = "one_or_first")]
    pub sample_size: usize,
    /// What the encoder's latents are multiplied by for the transformer,
    pub scaling_factor: f64,
    /// after this has been subtracted.
    pub shift_factor: Option<f64>,
    /// Whether a 1x1 convolution comes before the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle block attends.
    pub mid_block_add_attention: bool,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            out_channels: 3,
            up_block_types: vec![UP_BLOCK.into()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".into(),
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

fn one_or_first<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        One(usize),
        Pair([usize; 2]),
    }
    Ok(match Size::deserialize(from)? {
        Size::One(size) | Size::Pair([size, _]) => size,
    })
}

const UP_BLOCK: &str = "UpDecoderBlock2D";
const EPS: f64 = 1e-6;

impl AutoencoderKlConfig {
    /// Pixels per latent pixel along a side.
    pub fn scale(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(16)
    }

    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let bad = |what: String| Err(ModelError::Config { class: "AutoencoderKL", what });
        let (channels, groups) = (&self.block_out_channels, self.norm_num_groups);
        if channels.is_empty() || channels.len() > 8 {
            return bad(format!("block_out_channels has {} entries, not between 1 and 8", channels.len()));
        }
        positive(
            "AutoencoderKL",
            &[
                ("latent_channels", self.latent_channels),
                ("sample_size", self.sample_size),
                ("norm_num_groups", groups),
            ],
        )?;
        positive("AutoencoderKL", &channels.iter().map(|c| ("block_out_channels", *c)).collect::<Vec<_>>())?;
        few("AutoencoderKL", &[("layers_per_block", self.layers_per_block)])?;
        if self.out_channels != 3 {
            return bad(format!("out_channels={} is not supported, only 3: red, green, blue", self.out_channels));
        }
        if self.up_block_types.len() != channels.len() {
            return bad(format!(
                "up_block_types has {} entries, block_out_channels={channels:?} has {}",
                self.up_block_types.len(),
                channels.len()
            ));
        }
        if let Some(other) = self.up_block_types.iter().find(|name| *name != UP_BLOCK) {
            return bad(format!("up_block_types with {other:?} is not supported, only {UP_BLOCK:?}"));
        }
        if let Some(c) = channels.iter().find(|c| groups == 0 || **c == 0 || **c % groups != 0) {
            return bad(format!("norm_num_groups={groups} must divide all of block_out_channels, {c} among them"));
        }
        if !matches!(self.act_fn.to_lowercase().as_str(), "silu" | "swish") {
            return bad(format!("act_fn={:?} is not supported, only \"silu\"", self.act_fn));
        }
        if !self.scaling_factor.is_normal() || !self.shift_factor.unwrap_or(0.0).is_finite() {
            return bad(format!(
                "scaling_factor={} must be a number other than 0, shift_factor={:?} a number or null",
                self.scaling_factor, self.shift_factor
            ));
        }
        Ok(())
    }
}

/// The decoder with its weights on a device.
#[derive(Debug)]
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    dtype: DType,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
}

impl AutoencoderKl {
    /// Parts of names in a checkpoint that decoding does not need.
    pub const UNUSED: &[&str] = &["encoder.", "quant_conv."];

    /// Reads the weights of the decoder.
    ///
    /// # Errors
    /// A configuration that contradicts itself; tensors of other shapes than it demands.
    pub fn load(loader: &Loader<'_>, config: &AutoencoderKlConfig) -> Result<Self, ModelError> {
        config.check()?;
        let c = config.latent_channels;
        Ok(Self {
            dtype: loader.dtype().into(),
            post_quant_conv: match config.use_post_quant_conv {
                true => Some(Conv2d::load(&loader.pp("post_quant_conv"), c, c, 1)?),
                false => None,
            },
            decoder: Decoder::load(&loader.pp("decoder"), config)?,
            config: config.clone(),
        })
    }

    /// Decodes as a whole; `see` is shown what comes out of `conv_in`, `mid_block`, `up_blocks.0` and so on.
    pub fn decode_each(&self, latents: Tensor<4>, mut see: impl FnMut(&str, &Tensor<4>)) -> Tensor<4> {
        let see = |stage: &str, x: &Tensor<4>| {
            see(stage, x);
            ControlFlow::Continue(())
        };
        self.decode_by(latents, &Bands::WHOLE, see).expect("one rank waits for nobody, and is not stopped")
    }

    /// Of all latents the rows of `bands`; `see` may break.
    fn decode_by(
        &self,
        latents: Tensor<4>,
        bands: &Bands<'_>,
        see: impl FnMut(&str, &Tensor<4>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, BandError> {
        let Widened { x, margins } = bands.cut(to_dtype(latents, self.dtype));
        let x = match &self.post_quant_conv {
            Some(conv) => conv.forward(x),
            None => x,
        };
        self.decoder.forward(bands, Widened { x, margins }, see)
    }
}

impl Vae for AutoencoderKl {
    fn factors(&self) -> Factors {
        let side = self.config.scale();
        Factors { frames: 1, height: side, width: side }
    }

    /// `latents / scaling_factor + shift_factor`
    fn unscale(&self, latents: Tensor<4>) -> Tensor<4> {
        latents / self.config.scaling_factor + self.config.shift_factor.unwrap_or(0.0)
    }

    fn tiles(&self, tiling: Tiling, latent_size: [usize; 2]) -> Option<Tiles> {
        Tiles::new(tiling, self.config.sample_size, self.config.scale(), latent_size)
    }

    fn decode_band(
        &self,
        latents: Tensor<4>,
        bands: &Bands<'_>,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Tensor<4>, BandError> {
        self.decode_by(latents, bands, |_, _| go_on())
    }
}

/// `Decoder`
#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn load(loader: &Loader<'_>, config: &AutoencoderKlConfig) -> Result<Self, LoadError> {
        let channels: Vec<_> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let up_block = |i: usize| {
            let c_in = channels[i.saturating_sub(1)];
            UpBlock::load(&loader.pp("up_blocks").pp(i), c_in, channels[i], i + 1 == channels.len(), config)
        };
        Ok(Self {
            conv_in: Conv2d::load(&loader.pp("conv_in"), config.latent_channels, first, 3)?,
            mid_block: MidBlock::load(&loader.pp("mid_block"), first, config)?,
            up_blocks: (0..channels.len()).map(up_block).collect::<Result<_, _>>()?,
            conv_norm_out: GroupNorm::load(&loader.pp("conv_norm_out"), last, config.norm_num_groups, EPS)?,
            conv_out: Conv2d::load(&loader.pp("conv_out"), last, config.out_channels, 3)?,
        })
    }

    /// - `see`: may break behind a stage
    fn forward(
        &self,
        bands: &Bands<'_>,
        latents: Widened,
        mut see: impl FnMut(&str, &Tensor<4>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, BandError> {
        let mut seen = |stage: &str, x: &Tensor<4>| match see(stage, x) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Cancelled),
        };
        let mut x = conv(&self.conv_in, latents, None);
        seen("conv_in", &x)?;
        x = self.mid_block.forward(bands, x)?;
        seen("mid_block", &x)?;
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = block.forward(bands, x)?;
            seen(&format!("up_blocks.{i}"), &x)?;
        }
        Ok(conv(&self.conv_out, bands.norm_silu(&self.conv_norm_out, x)?, None))
    }
}

/// A convolution of a band.
fn conv(conv: &Conv2d, Widened { x, margins }: Widened, residual: Option<Tensor<4>>) -> Tensor<4> {
    conv.forward_within(x, margins, residual)
}

/// `UNetMidBlock2D`
#[derive(Debug)]
struct MidBlock {
    resnets: [Resnet; 2],
    attention: Option<MidAttention>,
}

impl MidBlock {
    fn load(loader: &Loader<'_>, c: usize, config: &AutoencoderKlConfig) -> Result<Self, LoadError> {
        let resnet = |i: usize| Resnet::load(&loader.pp("resnets").pp(i), c, c, config);
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: match config.mid_block_add_attention {
                true => Some(MidAttention::load(&loader.pp("attentions.0"), c, config)?),
                false => None,
            },
        })
    }

    fn forward(&self, bands: &Bands<'_>, x: Tensor<4>) -> Result<Tensor<4>, CommError> {
        let mut x = self.resnets[0].forward(bands, x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(bands, x)?;
        }
        self.resnets[1].forward(bands, x)
    }
}

/// `UpDecoderBlock2D`
#[derive(Debug)]
struct UpBlock {
    resnets: Vec<Resnet>,
    upsampler: Option<Conv2d>,
}

impl UpBlock {
    fn load(
        loader: &Loader<'_>,
        c_in: usize,
        c_out: usize,
        is_last: bool,
        config: &AutoencoderKlConfig,
    ) -> Result<Self, LoadError> {
        let resnet =
            |i: usize| Resnet::load(&loader.pp("resnets").pp(i), if i == 0 { c_in } else { c_out }, c_out, config);
        Ok(Self {
            resnets: (0..=config.layers_per_block).map(resnet).collect::<Result<_, _>>()?,
            upsampler: match is_last {
                true => None,
                false => Some(Conv2d::load(&loader.pp("upsamplers.0.conv"), c_out, c_out, 3)?),
            },
        })
    }

    fn forward(&self, bands: &Bands<'_>, x: Tensor<4>) -> Result<Tensor<4>, CommError> {
        let x = self.resnets.iter().try_fold(x, |x, resnet| resnet.forward(bands, x))?;
        let Some(upsampler) = &self.upsampler else { return Ok(x) };
        let Widened { x, margins } = bands.widen(x)?;
        let x = Widened { x: upsample_nearest_2x(x), margins: margins.map(|rows| 2 * rows) };
        Ok(conv(upsampler, x, None))
    }
}

/// `ResnetBlock2D` without a time embedding.
#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    fn load(loader: &Loader<'_>, c_in: usize, c_out: usize, config: &AutoencoderKlConfig) -> Result<Self, LoadError> {
        let groups = config.norm_num_groups;
        Ok(Self {
            norm1: GroupNorm::load(&loader.pp("norm1"), c_in, groups, EPS)?,
            conv1: Conv2d::load(&loader.pp("conv1"), c_in, c_out, 3)?,
            norm2: GroupNorm::load(&loader.pp("norm2"), c_out, groups, EPS)?,
            conv2: Conv2d::load(&loader.pp("conv2"), c_out, c_out, 3)?,
            conv_shortcut: match c_in == c_out {
                true => None,
                false => Some(Conv2d::load(&loader.pp("conv_shortcut"), c_in, c_out, 1)?),
            },
        })
    }

    fn forward(&self, bands: &Bands<'_>, x: Tensor<4>) -> Result<Tensor<4>, CommError> {
        let y = conv(&self.conv1, bands.norm_silu(&self.norm1, x.clone())?, None);
        let y = bands.norm_silu(&self.norm2, y)?;
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(x),
            None => x,
        };
        Ok(conv(&self.conv2, y, Some(shortcut)))
    }
}

/// `Attention` over all pixels, with one head.
#[derive(Debug)]
struct MidAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl MidAttention {
    fn load(loader: &Loader<'_>, c: usize, config: &AutoencoderKlConfig) -> Result<Self, LoadError> {
        // checkpoints of before diffusers 0.18 have other names
        let old = loader.has("query.weight");
        let linear = |name: &str, before: &str| Linear::load(&loader.pp(if old { before } else { name }), c, c);
        Ok(Self {
            group_norm: GroupNorm::load(&loader.pp("group_norm"), c, config.norm_num_groups, EPS)?,
            to_q: linear("to_q", "query")?,
            to_k: linear("to_k", "key")?,
            to_v: linear("to_v", "value")?,
            to_out: linear("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, bands: &Bands<'_>, x: Tensor<4>) -> Result<Tensor<4>, CommError> {
        let [_, c, height, width] = x.dims();
        let y = pixels_to_tokens(bands.norm(&self.group_norm, x.clone())?);
        let all = |proj: &Linear| Ok(split_heads(bands.all_pixels(proj.forward(y.clone()), width)?, 1));
        let (k, v) = (all(&self.to_k)?, all(&self.to_v)?);
        let q = split_heads(self.to_q.forward(y.clone()), 1);
        let y = attention(q, k, v, None, attention_scale(c)).out;
        Ok(tokens_to_pixels(pixels_to_tokens(x) + self.to_out.forward(merge_heads(y)), height, width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_configurations_are_errors() {
        let check = |config: AutoencoderKlConfig| config.check().unwrap_err().to_string();
        let good = AutoencoderKlConfig::default();
        good.check().unwrap();
        let sized = |json: &str| serde_json::from_str::<AutoencoderKlConfig>(json).unwrap().sample_size;
        assert_eq!((sized(r#"{"sample_size": 96}"#), sized(r#"{"sample_size": [64, 96]}"#)), (96, 64));
        assert_eq!(
            check(AutoencoderKlConfig { norm_num_groups: 24, ..good.clone() }),
            "AutoencoderKL config: norm_num_groups=24 must divide all of block_out_channels, 64 among them"
        );
        check(AutoencoderKlConfig { norm_num_groups: 0, ..good.clone() });
        check(AutoencoderKlConfig { block_out_channels: vec![], ..good.clone() });
        check(AutoencoderKlConfig { block_out_channels: vec![64, 64], ..good.clone() });
        check(AutoencoderKlConfig { up_block_types: vec!["AttnUpDecoderBlock2D".into()], ..good.clone() });
        check(AutoencoderKlConfig { scaling_factor: 0.0, ..good });
    }
}
