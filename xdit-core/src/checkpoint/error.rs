use std::io;
use std::path::PathBuf;

use super::Dtype;

/// Why a pipeline folder or a checkpoint cannot be read. Each message is one line.
///
/// Names that come out of a file are shown quoted and cut to a readable length, since the file may be anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The system refused to open or read a file.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The path is a folder, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A text file is larger than any real one.
    #[error("{} is larger than the limit of {max} bytes for such a file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        max: u64,
    },
    /// A text file or a header is not UTF-8.
    #[error("{} is not UTF-8 text: {source}", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// Where it stops being UTF-8.
        source: std::str::Utf8Error,
    },
    /// A JSON file or a checkpoint's header does not parse as what it should be.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// serde's message, with line and column.
        source: serde_json::Error,
    },

    /// A dense layer is to be quantised where that cannot be.
    #[error("{tensor} cannot be quantised: fp8 is for weights in bf16 or f16 on an NVIDIA GPU")]
    Quantization {
        /// The weight.
        tensor: String,
    },

    /// The folder is no diffusers pipeline.
    #[error("{} is not a pipeline folder: it has no model_index.json", path.display())]
    NotAPipeline {
        /// The folder.
        path: PathBuf,
    },
    /// An entry of `model_index.json` has a form that pipelines do not use.
    #[error("{}: entry {key} is {found}, expected {expected}", path.display())]
    IndexEntry {
        /// The `model_index.json`.
        path: PathBuf,
        /// The entry's name.
        key: String,
        /// The JSON found there, shortened.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// The pipeline lacks a component that its class needs.
    #[error("{}: no component {name:?}, the pipeline has {}", path.display(), list(present))]
    NoComponent {
        /// The `model_index.json`.
        path: PathBuf,
        /// The component asked for.
        name: String,
        /// The components that the pipeline has.
        present: Vec<String>,
    },
    /// A file that must be there is not.
    #[error("{} does not exist", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// A path would lead out of the folder.
    #[error("{}: {name} is not the name of a file in its folder", path.display())]
    FileName {
        /// The file that names it, or the folder.
        path: PathBuf,
        /// The name, shortened and quoted.
        name: String,
    },
    /// A variant is a short word such as `fp16`.
    #[error("variant {variant} is not a word of letters, digits, '-' and '_'")]
    Variant {
        /// The variant, shortened and quoted.
        variant: String,
    },
    /// A component has no safetensors file under any of the names that diffusers uses.
    #[error("{} has no weights, looked for {}", path.display(), list(looked_for))]
    NoWeights {
        /// The component's folder.
        path: PathBuf,
        /// The file names tried.
        looked_for: Vec<String>,
    },
    /// No component has weights of the variant that was asked for.
    #[error("{}: no component has weights of the variant {variant:?}, there are {}", path.display(), list(present))]
    NoVariant {
        /// The pipeline's folder.
        path: PathBuf,
        /// The variant.
        variant: String,
        /// Those that some component has; `none` stands for the plain files.
        present: Vec<String>,
    },
    /// A pointer stands in the place of the file.
    #[error(
        "{} is a Git LFS pointer{}, not the file itself; run `git lfs pull` there, or download it again",
        file.display(), size.map_or_else(String::new, |size| format!(" to one of {size} bytes"))
    )]
    LfsPointer {
        /// The file.
        file: PathBuf,
        /// The size of the file that it points to.
        size: Option<u64>,
    },
    /// A web page was saved under the file's name.
    #[error(
        "{} is a web page, not the file itself; download it again, with a token if the page asks to log in",
        file.display()
    )]
    WebPage {
        /// The file.
        file: PathBuf,
    },
    /// A message was saved under the name of a checkpoint.
    #[error("{} holds text in place of weights, {start}; download it again", file.display())]
    Text {
        /// The file.
        file: PathBuf,
        /// How it begins, shortened and quoted.
        start: String,
    },
    /// Weights in a format that is not read here.
    #[error("{} is {format}, which is not read here; {advice}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// The format.
        format: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A component has safetensors files, under names that diffusers does not look for.
    #[error("{} has {found}, but not under a name that is looked for: {}", path.display(), list(looked_for))]
    OtherNames {
        /// The component's folder.
        path: PathBuf,
        /// A file that is there, shortened and quoted.
        found: String,
        /// The names of single files that are looked for.
        looked_for: Vec<String>,
    },
    /// The weights are quantised.
    #[error("{} is quantised with {method}, which is not read here; take the model's weights in bf16, f16 or f32", file.display())]
    Quantized {
        /// The file that says so.
        file: PathBuf,
        /// How.
        method: String,
    },
    /// A setting asks for something that is not built.
    #[error("{}: {key} is {found}, which is not supported", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// Its value, shortened.
        found: String,
    },
    /// A shard that the index names does not exist.
    #[error("{}: shard {shard} with {n_tensors} tensors, {tensor} among them, does not exist", index.display())]
    NoShard {
        /// The `*.index.json`.
        index: PathBuf,
        /// The shard, shortened and quoted.
        shard: String,
        /// A tensor that it should hold.
        tensor: String,
        /// How many tensors it should hold.
        n_tensors: usize,
    },
    /// The file is too short for the length that a safetensors file starts with.
    #[error("{}: {len} bytes are too few for a safetensors file", file.display())]
    TooShort {
        /// The checkpoint file.
        file: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// The header is longer than the file, or than any real header.
    #[error("{}: header of {len} bytes, expected at most {max} in a file of {file_len}", file.display())]
    HeaderLength {
        /// The checkpoint file.
        file: PathBuf,
        /// The header's length in bytes, as the file has it.
        len: u64,
        /// The most that fits.
        max: u64,
        /// The file's length in bytes.
        file_len: u64,
    },
    /// The file ends before its tensors do.
    #[error("{} is cut off: it has {len} bytes and its header speaks of {expected}; download it again", file.display())]
    Truncated {
        /// The checkpoint file.
        file: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The length that its header gives.
        expected: u64,
    },
    /// A GPU does not take a tensor.
    #[cfg(feature = "cuda")]
    #[error("{}: tensor {tensor}: {source}", file.display())]
    Device {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        source: crate::cuda::CudaError,
    },
    /// Two tensors share a name.
    #[error("{}: tensor {tensor} is already in {}", file.display(), other.display())]
    Duplicate {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file that holds the other one; the same one, perhaps.
        other: PathBuf,
    },
    /// A tensor's dtype is none of safetensors'.
    #[error("{}: tensor {tensor} has the unknown dtype {dtype}", file.display())]
    UnknownDtype {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype, shortened and quoted.
        dtype: String,
    },
    /// A tensor's size does not fit in 64 bits.
    #[error("{}: tensor {tensor} of shape {shape:?} has more elements than can be counted", file.display())]
    ShapeOverflow {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor's bytes lie outside the file.
    #[error("{}: tensor {tensor} is bytes {start}..{end} of {data_len}", file.display())]
    Offsets {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// First byte, counted from the end of the header.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// How many bytes follow the header.
        data_len: u64,
    },
    /// A tensor's bytes are not as many as its shape and dtype need.
    #[error("{}: tensor {tensor} has {found} bytes, expected {bits} bits for {dtype} {shape:?}", file.display())]
    Size {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// The size in bits that shape and dtype give.
        bits: u64,
        /// The bytes between its offsets.
        found: u64,
    },
    /// A tensor overlaps the one before it or leaves a hole.
    #[error("{}: tensor {tensor} starts at byte {found}, expected {expected}, where the one before it ends", file.display())]
    Gap {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// Where it starts.
        found: u64,
    },
    /// The file goes on after the last tensor.
    #[error("{}: tensors end at byte {expected} of the data, the file at {found}", file.display())]
    Trailing {
        /// The checkpoint file.
        file: PathBuf,
        /// The end of the last tensor.
        expected: u64,
        /// The bytes that follow the header.
        found: u64,
    },

    /// A tensor has not the shape that the model's configuration gives it.
    #[error("{}: tensor {tensor} has shape {found:?}, expected {expected:?}", file.display())]
    Shape {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The model's shape.
        expected: Vec<usize>,
        /// The file's shape.
        found: Vec<usize>,
    },
    /// A tensor is not of a float type that can be converted.
    #[error("{}: tensor {tensor} is {found}, expected F64, F32, F16 or BF16", file.display())]
    Dtype {
        /// The checkpoint file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file's dtype.
        found: Dtype,
    },
    /// The model asked for tensors that the checkpoint has not.
    #[error("{component}: {n} tensors are missing: {}{}", list(names), if *n > names.len() { ", ..." } else { "" })]
    Missing {
        /// The component.
        component: String,
        /// The first of the names.
        names: Vec<String>,
        /// How many are missing.
        n: usize,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    names.join(", ")
}

/// `name` quoted, with control characters escaped, and cut where it stops helping: it comes from a file.
pub(crate) fn shown(name: &str) -> String {
    const MAX: usize = 120;
    match name.char_indices().nth(MAX) {
        Some((end, _)) => format!("{:?}...", &name[..end]),
        None => format!("{name:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_stay_on_one_short_line() {
        assert_eq!(shown("a.weight"), "\"a.weight\"");
        assert_eq!(shown("a\nb"), "\"a\\nb\"");
        assert!(shown(&"é".repeat(1_000_000)).len() < 300);
    }

    #[test]
    fn missing_says_when_the_list_is_cut() {
        let names = vec!["a".to_string(), "b".to_string()];
        let error = |n| LoadError::Missing { component: "vae".into(), names: names.clone(), n };
        assert_eq!(error(2).to_string(), "vae: 2 tensors are missing: a, b");
        assert_eq!(error(9).to_string(), "vae: 9 tensors are missing: a, b, ...");
    }
}
