//! Files that are not what their name says: pointers, web pages and other formats in the place of a checkpoint.

use std::path::Path;

use super::LoadError;
use super::error::shown;

/// Bytes that are enough to tell; pointers are shorter, and pages say so at once.
const HEAD: usize = 512;

/// The error that `bytes` are a Git LFS pointer or a web page in the place of the file `path`.
pub(crate) fn foreign_text(path: &Path, bytes: &[u8]) -> Option<LoadError> {
    let head = &bytes[..bytes.len().min(HEAD)];
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    if head.starts_with(b"version https://git-lfs.github.com/spec/") {
        let text = String::from_utf8_lossy(head);
        let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse().ok());
        return Some(LoadError::LfsPointer { file: path.into(), size });
    }
    let lower = head.to_ascii_lowercase();
    if [&b"<!doctype"[..], b"<html", b"<head", b"<body", b"<?xml", b"<error"]
        .iter()
        .any(|start| lower.starts_with(start))
    {
        return Some(LoadError::WebPage { file: path.into() });
    }
    None
}

/// The error that `bytes` are something known that is no safetensors file.
pub(super) fn foreign_weights(path: &Path, bytes: &[u8]) -> Option<LoadError> {
    if let Some(error) = foreign_text(path, bytes) {
        return Some(error);
    }
    let format = match bytes {
        [b'P', b'K', 3, 4, ..] => "a zip archive, as PyTorch saves pickled weights",
        [0x80, 2..=5, ..] if bytes.get(2).is_some_and(|b| b"}](cX\x8a\x95".contains(b)) => "a Python pickle",
        [b'G', b'G', b'U', b'F', ..] => "a GGUF file, whose weights are quantised",
        [0x89, b'H', b'D', b'F', ..] => "an HDF5 file of TensorFlow",
        _ => {
            // As a length these eight bytes would be far beyond every file.
            let is_text = |b: &u8| b.is_ascii_graphic() || b.is_ascii_whitespace();
            let text = bytes.len() >= 8 && bytes[..8].iter().all(is_text);
            let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
            let start = String::from_utf8_lossy(&line[..line.len().min(60)]);
            return text.then(|| LoadError::Text { file: path.into(), start: shown(&start) });
        }
    };
    Some(LoadError::Format { file: path.into(), format, advice: advice(format) })
}

/// What a file's name says of weights in a format that is not read here.
pub(crate) fn foreign_name(path: &Path) -> Option<LoadError> {
    let format = match path.extension()?.to_str()? {
        "bin" | "pt" | "pth" | "ckpt" | "pkl" => "pickled weights of PyTorch",
        "gguf" => "a GGUF file, whose weights are quantised",
        "h5" => "an HDF5 file of TensorFlow",
        "msgpack" => "weights of Flax",
        "onnx" | "pb" => "an ONNX model",
        "flashpack" => "a FlashPack file",
        _ => return None,
    };
    Some(LoadError::Format { file: path.into(), format, advice: advice(format) })
}

fn advice(format: &str) -> &'static str {
    if format.contains("quantised") {
        "take the model's original weights as safetensors"
    } else {
        "take the model's safetensors, or save them from Python: from_pretrained(..), then save_pretrained(..)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(bytes: &[u8], message: &str) {
        let error = foreign_weights(Path::new("m.safetensors"), bytes).expect("recognised").to_string();
        assert!(error.starts_with("m.safetensors") && error.contains(message) && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn knows_what_people_have_in_place_of_weights() {
        is(b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 246144152\n", "of 246144152 bytes");
        is(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer");
        is(b"<!DOCTYPE html>\n<html>", "web page");
        is(b"\n <HTML lang=en>", "web page");
        is(b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", "web page");
        is(b"PK\x03\x04\0\0\x08\x08", "zip archive");
        is(b"\x80\x02}q\x01(", "pickle");
        is(b"GGUF\x03\0\0\0", "quantised");
        is(b"Entry not found", "\"Entry not found\"");
        assert!(foreign_weights(Path::new("m"), b"\x38\0\0\0\0\0\0\0{\"w\":").is_none());
    }
}
