//! Writing results: whole or not at all.

use std::borrow::Cow;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use safetensors::tensor::{Dtype, TensorView, serialize};
use tempfile::NamedTempFile;
use xdit_models::pipeline::{Content, Output, Request, Settings};

use crate::args::OutputType;

/// Where the results of a request go.
pub struct Target {
    folder: PathBuf,
    name: Name,
    extension: String,
}

enum Name {
    /// The name without its ending; several results are numbered.
    File { stem: String, numbered: bool },
    /// Results are named after prompt, picture and seed.
    Folder,
}

impl Target {
    /// Sees to it that results can be written.
    ///
    /// A path that is a folder, or ends in `/`, or has no ending, is a folder; it is made if it is not there.
    pub fn new(path: &Path, output_type: OutputType, n_results: usize) -> Result<Self> {
        let default_extension = match output_type {
            OutputType::Png => "png",
            OutputType::Latent => "safetensors",
        };
        let is_folder = path.is_dir() || path.to_string_lossy().ends_with(['/', '\\']) || path.extension().is_none();
        let target = if is_folder {
            fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
            Self { folder: path.into(), name: Name::Folder, extension: default_extension.into() }
        } else {
            let folder = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            if !folder.is_dir() {
                bail!("cannot write {}: the folder {} is not there", path.display(), folder.display());
            }
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            match output_type {
                OutputType::Png if !extension.eq_ignore_ascii_case("png") => {
                    bail!("cannot write {}: pictures are written as .png", path.display())
                }
                _ => {}
            }
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let extension = if output_type == OutputType::Latent { default_extension.into() } else { extension };
            Self { folder: folder.into(), name: Name::File { stem, numbered: n_results > 1 }, extension }
        };
        // a full or read-only disk should show before the work, not after
        target.temporary()?;
        Ok(target)
    }

    /// Writes one result and returns its path.
    pub fn write(&self, output: &Output, request: &Request, settings: &Settings, model: &str) -> Result<PathBuf> {
        let index = output.prompt * request.num_images + output.image;
        let name = match &self.name {
            Name::File { stem, numbered: false } => stem.clone(),
            Name::File { stem, numbered: true } => format!("{stem}-{index}"),
            Name::Folder => format!("{}-{}-seed{}", output.prompt, output.image, output.seed),
        };
        let file_name = format!("{name}.{}", self.extension);
        let path = if self.folder == Path::new(".") { file_name.into() } else { self.folder.join(file_name) };
        let texts = texts(output, request, settings, model);
        let mut file = self.temporary()?;
        let written = match &output.content {
            Content::Picture { width, height, rgb } => png(&mut file, *width, *height, rgb, &texts),
            Content::Latent { dims, values } => latents(&mut file, dims, values, &texts),
        };
        written
            .and_then(|()| Ok(file.as_file().sync_all()?))
            .with_context(|| format!("cannot write {}", path.display()))?;
        file.persist(&path).map_err(|e| e.error).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn temporary(&self) -> Result<NamedTempFile> {
        temporary(&self.folder)
    }
}

/// A file to write aside and rename, so that nobody sees half of it.
fn temporary(folder: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".xdit-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // what any other new file gets; the system takes the user's mask off
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).with_context(|| format!("cannot write to {}", folder.display()))
}

/// Writes a whole file of text or none.
pub fn write_text(path: &Path, content: &str) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("cannot write {}", path.display());
    let mut file = temporary(folder)?;
    file.write_all(content.as_bytes()).and_then(|()| file.as_file().sync_all()).with_context(failed)?;
    file.persist(path).map_err(|e| e.error).with_context(failed)?;
    Ok(())
}

/// What a result says of itself. `parameters` is the form that other programs read.
fn texts(output: &Output, request: &Request, settings: &Settings, model: &str) -> Vec<(&'static str, String)> {
    let prompt = &request.prompts[output.prompt];
    let negative = match request.negative_prompts.as_slice() {
        [one] => Some(one),
        many => many.get(output.prompt),
    };
    let Settings {
        height,
        width,
        drawn: _,
        num_inference_steps: steps,
        guidance_scale,
        true_cfg_scale,
        guidance_rescale,
        max_sequence_length,
    } = settings;
    let mut parameters = prompt.clone();
    if let Some(negative) = negative {
        parameters.push_str(&format!("\nNegative prompt: {negative}"));
    }
    parameters.push_str(&format!(
        "\nSteps: {steps}, Guidance: {guidance_scale}, CFG scale: {true_cfg_scale}, Seed: {}, Size: {width}x{height}, \
         Max sequence length: {max_sequence_length}, Model: {model}, Version: xdit {}",
        output.seed,
        env!("CARGO_PKG_VERSION")
    ));
    let mut texts = vec![
        ("prompt", prompt.clone()),
        ("seed", output.seed.to_string()),
        ("model", model.into()),
        ("num_inference_steps", steps.to_string()),
        ("guidance_scale", guidance_scale.to_string()),
        ("true_cfg_scale", true_cfg_scale.to_string()),
        ("guidance_rescale", guidance_rescale.to_string()),
        ("parameters", parameters),
        ("Software", format!("xdit {}", env!("CARGO_PKG_VERSION"))),
    ];
    if let Some(negative) = negative {
        texts.push(("negative_prompt", negative.clone()));
    }
    texts
}

fn png(file: &mut NamedTempFile, width: usize, height: usize, rgb: &[u8], texts: &[(&str, String)]) -> Result<()> {
    let mut writer = BufWriter::new(file);
    let mut encoder = png::Encoder::new(&mut writer, u32::try_from(width)?, u32::try_from(height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (key, text) in texts {
        encoder.add_itxt_chunk((*key).to_owned(), text.clone())?;
    }
    let mut png = encoder.write_header()?;
    png.write_image_data(rgb)?;
    png.finish()?;
    writer.flush()?;
    Ok(())
}

fn latents(file: &mut NamedTempFile, dims: &[usize], values: &[f32], texts: &[(&str, String)]) -> Result<()> {
    let bytes: Cow<'_, [u8]> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, dims.to_vec(), &bytes)?;
    let metadata = texts.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    file.write_all(&serialize([("latents", view)], Some(metadata))?)?;
    Ok(())
}
