//! What to draw, and what comes of it.

use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;
use xdit_core::engine::SkipLayers;

use crate::pipeline::binning::Binning;
use crate::pipeline::geometry::Geometry;

/// What is wrong with a request.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RequestError {
    /// No prompt at all.
    #[error("no prompt given")]
    NoPrompt,
    /// The size does not fit the model's grid.
    #[error("{axis} {size} is not a multiple of {multiple}; the nearest that fit are {below} and {above}")]
    Size {
        /// `height` or `width`
        axis: &'static str,
        /// What was asked for, in pixels.
        size: usize,
        /// What it must be a multiple of.
        multiple: usize,
        /// The nearest that fits, not above.
        below: usize,
        /// The nearest that fits above.
        above: usize,
    },
    /// The size is nothing, or beyond what any model draws.
    #[error("{axis} {size} is not within {min} to {max} pixels")]
    SizeRange {
        /// `height` or `width`
        axis: &'static str,
        /// What was asked for, in pixels.
        size: usize,
        /// Smallest.
        min: usize,
        /// Largest.
        max: usize,
    },
    /// A number outside its range.
    #[error("{name} {value} is not within {min} to {max}")]
    Range {
        /// The parameter.
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// A block that is not there.
    #[error("skip-guidance-layers names block {block}; the model has {n_blocks}, from 0 on")]
    SkipLayer {
        /// What was asked for.
        block: usize,
        /// How many there are.
        n_blocks: usize,
    },
    /// Neither one negative prompt for all prompts nor one for each.
    #[error("{negative} negative prompts for {prompts} prompts; give one for all or one for each")]
    NegativeCount {
        /// Negative prompts.
        negative: usize,
        /// Prompts.
        prompts: usize,
    },
}

/// What to draw. `None` means the model's default.
#[derive(Debug, Clone)]
pub struct Request {
    /// One or more captions.
    pub prompts: Vec<String>,
    /// None, one for all prompts, or one for each.
    pub negative_prompts: Vec<String>,
    /// Pixels.
    pub height: Option<usize>,
    /// Pixels.
    pub width: Option<usize>,
    /// Denoising steps.
    pub num_inference_steps: Option<usize>,
    /// The guidance that a distilled model (FLUX) is told; for all others classifier-free guidance, where above 1.
    pub guidance_scale: Option<f32>,
    /// For FLUX: classifier-free guidance away from the negative prompt, where above 1.
    pub true_cfg_scale: Option<f32>,
    /// How far classifier-free guidance is brought back to the standard deviation of the unguided prediction, 0 to 1.
    pub guidance_rescale: Option<f32>,
    /// Skip-layer guidance, on top of classifier-free guidance.
    pub skip_layers: Option<SkipLayers>,
    /// Whether a model that was trained on few sizes draws at the nearest of them.
    pub resolution_binning: bool,
    /// Tokens of the T5 encoder.
    pub max_sequence_length: Option<usize>,
    /// Of the first picture of each prompt; picture `k` has `seed + k`.
    pub seed: u64,
    /// Pictures per prompt.
    pub num_images: usize,
    /// Latents instead of pictures.
    pub output: OutputType,
}

impl Request {
    /// One picture of `prompt` with the model's defaults and seed 42.
    pub fn new(prompt: &str) -> Self {
        Self {
            prompts: vec![prompt.into()],
            negative_prompts: Vec::new(),
            height: None,
            width: None,
            num_inference_steps: None,
            guidance_scale: None,
            true_cfg_scale: None,
            guidance_rescale: None,
            skip_layers: None,
            resolution_binning: true,
            max_sequence_length: None,
            seed: 42,
            num_images: 1,
            output: OutputType::Picture,
        }
    }
}

/// What [`Pipeline::generate`](crate::pipeline::Pipeline::generate) returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputType {
    /// Decoded pictures.
    #[default]
    Picture,
    /// Latents as diffusers' `output_type="latent"` returns them.
    Latent,
}

/// One result.
#[derive(Debug, Clone)]
pub struct Output {
    /// Index of the prompt.
    pub prompt: usize,
    /// Index of the picture among its prompt's.
    pub image: usize,
    /// The seed that draws it again.
    pub seed: u64,
    /// What was drawn.
    pub content: Content,
}

/// A picture or its latents.
#[derive(Debug, Clone)]
pub enum Content {
    /// Rows from the top, three bytes a pixel.
    Picture {
        /// Pixels.
        width: usize,
        /// Pixels.
        height: usize,
        /// `3 * width * height` bytes
        rgb: Vec<u8>,
    },
    /// f32 latents.
    Latent {
        /// `[1, img_tokens, channels]` for FLUX, `[1, channels, height, width]` for all others
        dims: Vec<usize>,
        /// Row-major.
        values: Vec<f32>,
    },
}

impl Content {
    /// How it travels to another process: bytes as the numbers that they are.
    pub(super) fn to_tensor(&self, device: &Device) -> Tensor<1> {
        let values = match self {
            Self::Picture { rgb, .. } => rgb.iter().copied().map(f32::from).collect(),
            Self::Latent { values, .. } => values.clone(),
        };
        Tensor::from_data(TensorData::new(values, [self.n_values()]), device)
    }

    /// How many numbers it holds.
    pub(super) fn n_values(&self) -> usize {
        match self {
            Self::Picture { rgb, .. } => rgb.len(),
            Self::Latent { values, .. } => values.len(),
        }
    }

    /// Another one of the same kind and size.
    pub(super) fn with(&self, values: Vec<f32>) -> Self {
        match self {
            Self::Picture { width, height, .. } => {
                let rgb = values.into_iter().map(|x| x as u8).collect();
                Self::Picture { width: *width, height: *height, rgb }
            }
            Self::Latent { dims, .. } => Self::Latent { dims: dims.clone(), values },
        }
    }
}

/// A request with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// Denoising steps.
    pub num_inference_steps: usize,
    /// Height and width at which the model draws; another than the picture's where it was trained on few sizes.
    pub drawn: [usize; 2],
    /// The guidance that a distilled model is told; for all others classifier-free guidance.
    pub guidance_scale: f32,
    /// For FLUX; 1 where there is no negative prompt to guide away from.
    pub true_cfg_scale: f32,
    /// 0 is none.
    pub guidance_rescale: f32,
    /// Tokens of the T5 encoder.
    pub max_sequence_length: usize,
}

/// Recommended settings. A folder may bring its own in `xdit.json`; what is absent there is the architecture's.
#[derive(Debug, Clone, Copy, Deserialize, Default)]
pub struct Defaults {
    /// Pixels.
    pub height: Option<usize>,
    /// Pixels.
    pub width: Option<usize>,
    /// Denoising steps.
    pub num_inference_steps: Option<usize>,
    /// See [`Request::guidance_scale`].
    pub guidance_scale: Option<f32>,
    /// See [`Request::true_cfg_scale`].
    pub true_cfg_scale: Option<f32>,
    /// Tokens of the T5 encoder.
    pub max_sequence_length: Option<usize>,
}

impl Defaults {
    /// Squares of `side` pixels, for a model with classifier-free guidance.
    pub(crate) fn square(side: usize, steps: usize, guidance: f32, tokens: usize) -> Self {
        Self {
            height: Some(side),
            width: Some(side),
            num_inference_steps: Some(steps),
            guidance_scale: Some(guidance),
            true_cfg_scale: None,
            max_sequence_length: Some(tokens),
        }
    }

    /// `self`, and `other` where `self` says nothing.
    pub fn or(self, other: Self) -> Self {
        Self {
            height: self.height.or(other.height),
            width: self.width.or(other.width),
            num_inference_steps: self.num_inference_steps.or(other.num_inference_steps),
            guidance_scale: self.guidance_scale.or(other.guidance_scale),
            true_cfg_scale: self.true_cfg_scale.or(other.true_cfg_scale),
            max_sequence_length: self.max_sequence_length.or(other.max_sequence_length),
        }
    }
}

/// Largest side of a picture.
const MAX_SIDE: usize = 16_384;

impl Request {
    /// With a model's defaults, checked against what it can draw.
    ///
    /// # Errors
    /// A setting that the model cannot serve.
    pub(crate) fn settings(
        &self,
        d: &Defaults,
        geometry: &Geometry,
        binning: Option<&Binning>,
    ) -> Result<Settings, RequestError> {
        let asked = [self.height.or(d.height).unwrap_or(1024), self.width.or(d.width).unwrap_or(1024)];
        let ([height, width], drawn) = match binning.filter(|_| self.resolution_binning) {
            Some(binning) => {
                check_range(asked, 1, MAX_SIDE)?;
                let drawn = binning.nearest(asked);
                (if binning.scales_back() { asked } else { drawn }, drawn)
            }
            None => {
                check_grid(asked, geometry)?;
                (asked, asked)
            }
        };
        let settings = Settings {
            height,
            width,
            drawn,
            num_inference_steps: self.num_inference_steps.or(d.num_inference_steps).unwrap_or(28),
            guidance_scale: self.guidance_scale.or(d.guidance_scale).unwrap_or(3.5),
            true_cfg_scale: self.true_cfg_scale.or(d.true_cfg_scale).unwrap_or(1.0),
            guidance_rescale: self.guidance_rescale.unwrap_or(0.0),
            max_sequence_length: self.max_sequence_length.or(d.max_sequence_length).unwrap_or(512),
        };
        let range = |name, value: f64, min: f64, max: f64| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(RequestError::Range { name, value, min, max }),
        };
        range("num-inference-steps", settings.num_inference_steps as f64, 1.0, 1000.0)?;
        range("max-sequence-length", settings.max_sequence_length as f64, 1.0, 512.0)?;
        range("guidance-scale", settings.guidance_scale.into(), 0.0, 1000.0)?;
        range("true-cfg-scale", settings.true_cfg_scale.into(), 0.0, 1000.0)?;
        range("guidance-rescale", settings.guidance_rescale.into(), 0.0, 1.0)?;
        range("num-images", self.num_images as f64, 1.0, 100_000.0)?;
        if self.prompts.is_empty() {
            return Err(RequestError::NoPrompt);
        }
        let (negative, prompts) = (self.negative_prompts.len(), self.prompts.len());
        if negative > 1 && negative != prompts {
            return Err(RequestError::NegativeCount { negative, prompts });
        }
        Ok(settings)
    }
}

fn check_range(size: [usize; 2], min: usize, max: usize) -> Result<(), RequestError> {
    for (axis, size) in ["height", "width"].into_iter().zip(size) {
        if !(min..=max).contains(&size) {
            return Err(RequestError::SizeRange { axis, size, min, max });
        }
    }
    Ok(())
}

fn check_grid(size: [usize; 2], geometry: &Geometry) -> Result<(), RequestError> {
    let multiple = geometry.pixels_per_token();
    let max = geometry.max_tokens.map_or(MAX_SIDE, |tokens| (tokens * multiple).min(MAX_SIDE));
    check_range(size, multiple, max)?;
    for (axis, size) in ["height", "width"].into_iter().zip(size) {
        if !size.is_multiple_of(multiple) {
            let below = size / multiple * multiple;
            return Err(RequestError::Size { axis, size, multiple, below, above: below + multiple });
        }
    }
    Ok(())
}
