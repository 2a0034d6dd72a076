//! Results as bytes of a file.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use anyhow::Result;
use image_webp::{ColorType, WebPEncoder};
use serde_json::json;
use xdit_models::pipeline::Content;

use crate::args::OutputType;
use crate::output::exif::exif;
use crate::output::texts::Texts;

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Png,
    Jpeg,
    /// Without loss.
    WebP,
    Safetensors,
}

impl Format {
    /// The format where no name says it.
    pub fn usual(output_type: OutputType) -> Self {
        match output_type {
            OutputType::Picture => Self::Png,
            OutputType::Latent => Self::Safetensors,
        }
    }

    /// The format that a file's ending stands for.
    ///
    /// # Errors
    /// The list of those that there are.
    pub fn of(extension: &OsStr, output_type: OutputType) -> Result<Self, &'static str> {
        match (output_type, extension.to_ascii_lowercase().to_str()) {
            (OutputType::Picture, Some("png")) => Ok(Self::Png),
            (OutputType::Picture, Some("jpg" | "jpeg")) => Ok(Self::Jpeg),
            (OutputType::Picture, Some("webp")) => Ok(Self::WebP),
            (OutputType::Latent, Some("safetensors")) => Ok(Self::Safetensors),
            (OutputType::Picture, _) => Err("pictures are written as .png, .jpg, .jpeg or .webp"),
            (OutputType::Latent, _) => Err("latents are written as .safetensors"),
        }
    }

    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::WebP => "webp",
            Self::Safetensors => "safetensors",
        }
    }

    /// - `quality`: of JPEG, 1 to 100
    pub fn encode(self, content: &Content, quality: u8, texts: &Texts) -> Result<Vec<u8>> {
        match content {
            Content::Latent { dims, values } => Ok(latents(dims, values, texts)),
            Content::Picture { width, height, rgb } => match self {
                Self::Jpeg => jpeg(u16::try_from(*width)?, u16::try_from(*height)?, rgb, quality, texts),
                Self::WebP => webp(u32::try_from(*width)?, u32::try_from(*height)?, rgb, texts),
                Self::Png | Self::Safetensors => png(u32::try_from(*width)?, u32::try_from(*height)?, rgb, texts),
            },
        }
    }
}

fn png(width: u32, height: u32, rgb: &[u8], texts: &Texts) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (key, text) in &texts.all {
        encoder.add_itxt_chunk((*key).to_owned(), text.clone())?;
    }
    let mut png = encoder.write_header()?;
    png.write_image_data(rgb)?;
    png.finish()?;
    Ok(bytes)
}

fn jpeg(width: u16, height: u16, rgb: &[u8], quality: u8, texts: &Texts) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, quality);
    encoder.add_exif_metadata(&exif(texts))?;
    encoder.encode(rgb, width, height, jpeg_encoder::ColorType::Rgb)?;
    Ok(bytes)
}

fn webp(width: u32, height: u32, rgb: &[u8], texts: &Texts) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new(&mut bytes);
    encoder.set_exif_metadata(exif(texts));
    encoder.encode(rgb, width, height, ColorType::Rgb8)?;
    Ok(bytes)
}

/// A safetensors file. The format's crate takes metadata as a hash map and writes it in the order of that, which is another
/// one each time; equal latents are to be equal files.
fn latents(dims: &[usize], values: &[f32], texts: &Texts) -> Vec<u8> {
    let metadata: BTreeMap<&str, &str> = texts.all.iter().map(|(key, text)| (*key, text.as_str())).collect();
    let tensor = json!({ "dtype": "F32", "shape": dims, "data_offsets": [0, size_of_val(values)] });
    let mut header = json!({ "__metadata__": metadata, "latents": tensor }).to_string();
    // data begins at a multiple of 8
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let length = (header.len() as u64).to_le_bytes();
    let data = values.iter().flat_map(|value| value.to_le_bytes());
    length.into_iter().chain(header.into_bytes()).chain(data).collect()
}
