//! The header of a safetensors file: 8 bytes of length, then JSON `{name: {dtype, shape, data_offsets}}`.
//!
//! The `safetensors` crate reads it too, but drops one of two tensors of the same name and reports neither the file
//! nor the numbers. What is accepted here is a subset of what that crate accepts; the tests hold it to that.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::error::shown;
use super::foreign::foreign_weights;
use super::{Dtype, LoadError};

/// Largest header, in bytes, as the Hugging Face hub limits it. The format allows four times as much.
const MAX_HEADER: u64 = 25_000_000;
/// No model has tensors of more dimensions; a header that claims more is not worth the memory.
const MAX_DIMS: usize = 32;

/// Where a tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// The tensors of the safetensors file `bytes`, ordered by their place in it. `file` is for error messages.
pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<Vec<(String, Place)>, LoadError> {
    let file_len = bytes.len() as u64;
    if let Some(error) = foreign_weights(file, bytes) {
        return Err(error);
    }
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(LoadError::TooShort { file: file.into(), len: file_len });
    };
    let len = u64::from_le_bytes(*len);
    let max = (rest.len() as u64).min(MAX_HEADER);
    if len > max {
        return Err(LoadError::HeaderLength { file: file.into(), len, max, file_len });
    }
    let (header, data) = rest.split_at(len as usize);
    let data_at = bytes.len() - data.len();
    let header = std::str::from_utf8(header).map_err(|source| LoadError::Utf8 { path: file.into(), source })?;
    let Header(mut entries) =
        serde_json::from_str(header).map_err(|source| LoadError::Json { path: file.into(), source })?;

    let mut names = HashSet::with_capacity(entries.len());
    if let Some((name, _)) = entries.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(LoadError::Duplicate { file: file.into(), tensor: shown(name), other: file.into() });
    }
    drop(names);

    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    if let Some(end) = end_if_consistent(&entries).filter(|end| *end > data.len() as u64) {
        return Err(LoadError::Truncated { file: file.into(), len: file_len, expected: data_at as u64 + end });
    }
    let mut places = Vec::with_capacity(entries.len());
    let mut end_of_last = 0;
    for (name, entry) in entries {
        let (start, end) = entry.data_offsets;
        let place = place(file, &name, entry, data.len() as u64)?;
        if start != end_of_last {
            return Err(LoadError::Gap {
                file: file.into(),
                tensor: shown(&name),
                expected: end_of_last,
                found: start,
            });
        }
        end_of_last = end;
        // `place` has checked that both lie in the data, so the sums stay in the file.
        let range = data_at + start as usize..data_at + end as usize;
        places.push((name, Place { range, ..place }));
    }
    if end_of_last != data.len() as u64 {
        return Err(LoadError::Trailing { file: file.into(), expected: end_of_last, found: data.len() as u64 });
    }
    Ok(places)
}

/// The end of the last tensor, if the sorted `entries` follow each other as they should.
fn end_if_consistent(entries: &[(String, Entry)]) -> Option<u64> {
    entries.iter().try_fold(0, |end, (_, entry)| {
        let (start, next) = entry.data_offsets;
        // A length that no file has is no sign of a file that was cut.
        (start == end && next >= start && next < 1 << 50).then_some(next)
    })
}

/// Checks one tensor by itself: its dtype, its shape, and that its bytes are in the file and as many as they should be.
fn place(file: &Path, name: &str, entry: Entry, data_len: u64) -> Result<Place, LoadError> {
    let (start, end) = entry.data_offsets;
    let Some(dtype) = Dtype::from_name(&entry.dtype) else {
        return Err(LoadError::UnknownDtype { file: file.into(), tensor: shown(name), dtype: shown(&entry.dtype) });
    };
    let Shape(shape) = entry.shape;
    let bits =
        shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim)).and_then(|n| n.checked_mul(dtype.bits() as u64));
    let dims: Option<Vec<usize>> = shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    let (Some(bits), Some(dims)) = (bits, dims) else {
        return Err(LoadError::ShapeOverflow { file: file.into(), tensor: shown(name), shape });
    };
    if start > end || end > data_len {
        return Err(LoadError::Offsets { file: file.into(), tensor: shown(name), start, end, data_len });
    }
    let found = end - start;
    if bits % 8 != 0 || bits / 8 != found {
        return Err(LoadError::Size { file: file.into(), tensor: shown(name), dtype, shape, bits, found });
    }
    Ok(Place { dtype, shape: dims, range: 0..0 })
}

/// All entries of the header, duplicates included, without `__metadata__`.
struct Header(Vec<(String, Entry)>);

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensor names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut has_metadata, true) {
                            return Err(A::Error::custom("two entries __metadata__"));
                        }
                        map.next_value::<Option<BTreeMap<String, String>>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_DIMS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_DIMS {
                        return Err(A::Error::invalid_length(MAX_DIMS + 1, &self));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, n_data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + n_data, 0);
        bytes
    }

    #[track_caller]
    fn refused(bytes: &[u8], message: &str) {
        let error = parse(Path::new("m.safetensors"), bytes).unwrap_err();
        assert_eq!(error.to_string(), format!("m.safetensors: {message}"));
    }

    #[test]
    fn reads_places_in_file_order() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"F32","shape":[0],"data_offsets":[16,16]}}  "#;
        let at = 8 + header.len();
        let places = parse(Path::new("m"), &file(header, 16)).unwrap();
        let names: Vec<_> = places.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "e"]);
        assert_eq!(places[1].1, Place { dtype: Dtype::BF16, shape: vec![2, 3], range: at + 4..at + 16 });
    }

    #[test]
    fn refuses_lengths_that_do_not_fit() {
        refused(b"abc", "3 bytes are too few for a safetensors file");
        refused(&[255; 20], "header of 18446744073709551615 bytes, expected at most 12 in a file of 20");
        refused(&file("{", 0), "EOF while parsing an object at line 1 column 1");
    }

    #[test]
    fn refuses_tensors_that_lie() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            file(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), 8)
        };
        refused(&one("F31", "[2]", "[0,8]"), "tensor \"w\" has the unknown dtype \"F31\"");
        refused(&one("F32", "[3]", "[0,8]"), "tensor \"w\" has 8 bytes, expected 96 bits for F32 [3]");
        refused(&one("F32", "[2]", "[8,16]"), "tensor \"w\" is bytes 8..16 of 8");
        refused(&one("F32", "[2]", "[8,0]"), "tensor \"w\" is bytes 8..0 of 8");
        refused(&one("F32", "[1]", "[4,8]"), "tensor \"w\" starts at byte 4, expected 0, where the one before it ends");
        refused(&one("F32", "[1]", "[0,4]"), "tensors end at byte 4 of the data, the file at 8");
        refused(
            &one("F32", "[4294967296,4294967296]", "[0,8]"),
            "tensor \"w\" of shape [4294967296, 4294967296] has more elements than can be counted",
        );
        refused(&one("F4", "[3]", "[0,8]"), "tensor \"w\" has 8 bytes, expected 12 bits for F4 [3]");
    }

    #[test]
    fn refuses_two_tensors_of_one_name() {
        let w = r#""w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        refused(&file(&format!("{{{w},{w}}}"), 4), "tensor \"w\" is already in m.safetensors");
    }
}
