//! The parts of sentencepiece's `spiece.model` that a tokenizer is made of.
//!
//! A protocol buffer, `ModelProto` of `sentencepiece_model.proto`. Fields that are not needed are skipped.

use super::shown::shown;

/// What is wrong with a sentencepiece model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpieceError {
    /// The file ends inside a field.
    #[error("cut off: a field at byte {at} of {size} is longer than what is left")]
    CutOff {
        /// Offset in the file.
        at: usize,
        /// The file's size in bytes.
        size: usize,
    },
    /// No protocol buffer.
    #[error("not a sentencepiece model: no field starts at byte {at}")]
    Tag {
        /// Offset in the file.
        at: usize,
    },
    /// A known field of another type.
    #[error("not a sentencepiece model: field {field} at byte {at} is of another type")]
    Type {
        /// Offset in the file.
        at: usize,
        /// The field's number in its message.
        field: u64,
    },
    /// A piece that is not text.
    #[error("piece {index} is not UTF-8")]
    Utf8 {
        /// Which one, from 0.
        index: usize,
    },
    /// Two equal pieces.
    #[error("piece {index} is {piece:?}, as an earlier one")]
    Twice {
        /// Which one, from 0.
        index: usize,
        /// Its text, shortened.
        piece: String,
    },
    /// Another algorithm.
    #[error("model_type is {found}, expected 1 (unigram)")]
    Model {
        /// Number in `TrainerSpec.ModelType`.
        found: u64,
    },
    /// Nothing in it.
    #[error("no pieces")]
    Empty,
}

/// `SentencePiece.Type`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A token like `</s>`.
    Control,
    /// A token that is always found as it stands.
    UserDefined,
    /// Everything else: normal, unknown, unused, byte.
    Other,
}

/// `SentencePiece`
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    pub text: &'a str,
    /// Log probability.
    pub score: f32,
    pub kind: Kind,
}

/// `ModelProto`
#[derive(Debug, Clone)]
pub struct Spiece<'a> {
    pub pieces: Vec<Piece<'a>>,
    /// Empty if characters stay as they are.
    pub charsmap: &'a [u8],
}

impl<'a> Spiece<'a> {
    /// Reads the file's content.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SpieceError> {
        let mut model = Self { pieces: Vec::new(), charsmap: &[] };
        let mut known = std::collections::HashSet::new();
        let mut fields = Fields { bytes, at: 0, end: bytes.len() };
        while let Some(field) = fields.next()? {
            match field.number {
                1 => {
                    let index = model.pieces.len();
                    let piece = piece(field.message(bytes)?, index)?;
                    if !known.insert(piece.text) {
                        return Err(SpieceError::Twice { index, piece: shown(piece.text) });
                    }
                    model.pieces.push(piece);
                }
                2 => {
                    let mut trainer = field.message(bytes)?;
                    while let Some(field) = trainer.next()? {
                        if field.number == 3 {
                            match field.varint()? {
                                1 => {}
                                found => return Err(SpieceError::Model { found }),
                            }
                        }
                    }
                }
                3 => {
                    let mut normalizer = field.message(bytes)?;
                    while let Some(field) = normalizer.next()? {
                        if field.number == 2 {
                            model.charsmap = field.bytes(bytes)?;
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(SpieceError::Empty);
        }
        Ok(model)
    }
}

fn piece<'a>(mut fields: Fields<'a>, index: usize) -> Result<Piece<'a>, SpieceError> {
    let mut piece = Piece { text: "", score: 0.0, kind: Kind::Other };
    while let Some(field) = fields.next()? {
        match field.number {
            1 => {
                let text = field.bytes(fields.bytes)?;
                piece.text = std::str::from_utf8(text).map_err(|_| SpieceError::Utf8 { index })?;
            }
            2 => piece.score = field.float()?,
            3 => {
                piece.kind = match field.varint()? {
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    _ => Kind::Other,
                }
            }
            _ => {}
        }
    }
    Ok(piece)
}

/// The fields of a message, which is a part of the file.
struct Fields<'a> {
    /// The whole file.
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

struct Field {
    at: usize,
    number: u64,
    value: Value,
}

enum Value {
    Varint(u64),
    /// Start and end in the file.
    Bytes(usize, usize),
    Fixed32([u8; 4]),
    Fixed64,
}

impl Fields<'_> {
    fn next(&mut self) -> Result<Option<Field>, SpieceError> {
        if self.at == self.end {
            return Ok(None);
        }
        let at = self.at;
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let size = self.varint()?;
                let start = self.at;
                self.take(usize::try_from(size).unwrap_or(usize::MAX))?;
                Value::Bytes(start, self.at)
            }
            5 => {
                let start = self.at;
                self.take(4)?;
                let four = self.bytes[start..].first_chunk().copied();
                Value::Fixed32(four.ok_or(SpieceError::Tag { at })?)
            }
            _ => return Err(SpieceError::Tag { at }),
        };
        match tag >> 3 {
            0 => Err(SpieceError::Tag { at }),
            number => Ok(Some(Field { at, number, value })),
        }
    }

    fn take(&mut self, n: usize) -> Result<(), SpieceError> {
        if n > self.end - self.at {
            return Err(SpieceError::CutOff { at: self.at, size: self.bytes.len() });
        }
        self.at += n;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, SpieceError> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            self.take(1)?;
            let byte = self.bytes[self.at - 1];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(SpieceError::Tag { at: start })
    }
}

impl Field {
    fn wrong(&self) -> SpieceError {
        SpieceError::Type { at: self.at, field: self.number }
    }

    fn varint(&self) -> Result<u64, SpieceError> {
        if let Value::Varint(value) = self.value { Ok(value) } else { Err(self.wrong()) }
    }

    fn float(&self) -> Result<f32, SpieceError> {
        if let Value::Fixed32(bytes) = self.value { Ok(f32::from_le_bytes(bytes)) } else { Err(self.wrong()) }
    }

    fn bytes<'a>(&self, file: &'a [u8]) -> Result<&'a [u8], SpieceError> {
        if let Value::Bytes(start, end) = self.value { Ok(&file[start..end]) } else { Err(self.wrong()) }
    }

    fn message<'a>(&self, file: &'a [u8]) -> Result<Fields<'a>, SpieceError> {
        if let Value::Bytes(at, end) = self.value { Ok(Fields { bytes: file, at, end }) } else { Err(self.wrong()) }
    }
}
