//! Writing results: one after the other as they are done, each whole or not at all.

mod encode;
mod exif;
pub mod place;
mod texts;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xdit_models::pipeline::{Output, Request, Settings};

use self::encode::Format;
use self::texts::Texts;
use crate::args::Generate;
use crate::console::Stdout;

/// More files than this are not looked at one by one before the first is drawn.
const MOST_CHECKED: usize = 10_000;
const DEFAULT_QUALITY: u8 = 95;

/// Where the results of a request go.
pub struct Target {
    place: Place,
    format: Format,
    quality: u8,
}

enum Place {
    Stdout,
    /// A file; several results are numbered.
    File {
        path: PathBuf,
        numbered: bool,
    },
    /// Results are named after prompt, picture and seed.
    Folder(PathBuf),
}

impl Target {
    /// Sees to it that results can be written, before there are any; makes nothing.
    ///
    /// A path that is a folder, or ends in `/`, or has no ending, is a folder; it is made when it is needed.
    ///
    /// # Errors
    /// A name that cannot be written, an ending that stands for no format, a terminal.
    pub fn new(args: &Generate, request: &Request) -> Result<Self> {
        let usual = Format::usual(args.output_type);
        let path = args.output.clone().unwrap_or_else(|| format!("xdit.{}", usual.extension()).into());
        let is_folder = path.is_dir() || path.to_string_lossy().ends_with(['/', '\\']) || path.extension().is_none();
        let n_results = request.prompts.len().saturating_mul(request.num_images);
        let (place, format) = match path.extension() {
            _ if path == Path::new("-") => (Place::Stdout, usual),
            Some(extension) if !is_folder => {
                let format = Format::of(extension, args.output_type)
                    .map_err(anyhow::Error::msg)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                (Place::File { path, numbered: n_results > 1 }, format)
            }
            _ => (Place::Folder(path), usual),
        };
        let target = Self { place, format, quality: args.quality.unwrap_or(DEFAULT_QUALITY) };
        target.check(args, request, n_results)?;
        Ok(target)
    }

    fn check(&self, args: &Generate, request: &Request, n_results: usize) -> Result<()> {
        match &self.place {
            Place::Stdout if n_results != 1 => bail!("standard output takes one picture, not {n_results}"),
            Place::Stdout if args.json => bail!("--json and --output - both want standard output"),
            Place::Stdout if io::stdout().is_terminal() => {
                bail!("standard output is a terminal; send the picture to a file or a program")
            }
            Place::Stdout => return Ok(()),
            Place::Folder(folder) if folder.exists() && !folder.is_dir() => {
                bail!("cannot write to {}: it is no folder, and a file needs an ending such as .png", folder.display())
            }
            Place::Folder(folder) if !folder.exists() => {
                let parent = folder.ancestors().find(|parent| parent.is_dir()).unwrap_or(Path::new("."));
                return place::temporary(parent).map(drop);
            }
            _ => {}
        }
        let mut folders = BTreeSet::new();
        let last = n_results.saturating_sub(1);
        for index in (0..n_results.min(MOST_CHECKED)).chain([last]) {
            let (prompt, image) = (index / request.num_images.max(1), index % request.num_images.max(1));
            folders.insert(place::check(&self.path(prompt, image, request))?);
        }
        // a full or read-only disk should show before the work, not after
        folders.iter().try_for_each(|folder| place::temporary(folder).map(drop))
    }

    /// Makes the folder, if there is none yet.
    ///
    /// # Errors
    /// Where that cannot be.
    pub fn make_folder(&self) -> Result<()> {
        let Place::Folder(folder) = &self.place else { return Ok(()) };
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        place::temporary(folder).map(drop)
    }

    pub fn is_stdout(&self) -> bool {
        matches!(self.place, Place::Stdout)
    }

    /// Flags that change nothing.
    pub fn without_effect(&self, args: &Generate) -> Option<String> {
        (args.quality.is_some() && self.format != Format::Jpeg)
            .then(|| format!("--quality has no effect on .{}", self.format.extension()))
    }

    /// Where the results lie, in words.
    pub fn whereabouts(&self) -> String {
        match &self.place {
            Place::Stdout => "standard output".into(),
            Place::File { path, .. } => match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder.display().to_string(),
                _ => "this folder".into(),
            },
            Place::Folder(folder) => folder.display().to_string(),
        }
    }

    /// Writes one result and returns its path.
    ///
    /// # Errors
    /// A disk that is full, and the like.
    pub fn write(
        &self,
        output: &Output,
        request: &Request,
        settings: &Settings,
        model: &str,
        out: &mut Stdout,
    ) -> Result<PathBuf> {
        let path = self.path(output.prompt, output.image, request);
        let texts = Texts::new(output, request, settings, model);
        let bytes = self
            .format
            .encode(&output.content, self.quality, &texts)
            .with_context(|| format!("cannot write {}", path.display()))?;
        match self.place {
            Place::Stdout => out.write(&bytes),
            Place::File { .. } | Place::Folder(_) => place::write(&path, &bytes)?,
        }
        Ok(path)
    }

    fn path(&self, prompt: usize, image: usize, request: &Request) -> PathBuf {
        match &self.place {
            Place::Stdout => "-".into(),
            Place::File { path, numbered: false } => path.clone(),
            Place::File { path, numbered: true } => {
                let mut name = OsString::from(path.file_stem().unwrap_or_default());
                name.push(format!("-{}.", prompt * request.num_images + image));
                name.push(path.extension().unwrap_or_default());
                path.with_file_name(name)
            }
            Place::Folder(folder) => {
                let seed = request.seed.wrapping_add(image as u64);
                folder.join(format!("{prompt}-{image}-seed{seed}.{}", self.format.extension()))
            }
        }
    }
}
