//! Reads a sentencepiece model: just enough protobuf for `ModelProto` of `sentencepiece_model.proto`.

use base64::Engine;

/// A unigram model.
#[derive(Debug, Default)]
pub struct Model {
    pub pieces: Vec<Piece>,
    /// The normaliser's compiled rules; empty for none.
    pub charsmap: Vec<u8>,
    /// Index of the unknown piece.
    pub unk_id: u64,
}

#[derive(Debug)]
pub struct Piece {
    pub text: String,
    /// Log probability.
    pub score: f32,
    pub is_control: bool,
    pub is_unknown: bool,
}

impl Model {
    /// Returns a message about the bytes where they are no unigram model.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self::default();
        let mut model_type = 1;
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Value::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        match field? {
                            (3, Value::Number(n)) => model_type = n,
                            (40, Value::Number(n)) => model.unk_id = n,
                            _ => {}
                        }
                    }
                }
                (3, Value::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        if let (2, Value::Bytes(map)) = field? {
                            model.charsmap = map.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        if model_type != 1 {
            return Err(format!("model type {model_type} is not supported, only unigram (1)"));
        }
        // the trainer's field may be absent or of another vocabulary; the piece's type says it for certain
        if let Some(i) = model.pieces.iter().position(|p| p.is_unknown) {
            model.unk_id = i as u64;
        }
        if model.unk_id >= model.pieces.len() as u64 {
            return Err(format!("unknown piece {} of {} pieces", model.unk_id, model.pieces.len()));
        }
        Ok(model)
    }

    pub fn charsmap_base64(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(&self.charsmap)
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(b)) => {
                    text = String::from_utf8(b.to_vec()).map_err(|_| "a piece is not UTF-8".to_owned())?;
                }
                (2, Value::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Value::Number(n)) => kind = n,
                _ => {}
            }
        }
        if !score.is_finite() {
            return Err(format!("piece {text:?} has the score {score}"));
        }
        Ok(Self { text, score, is_control: kind == 3, is_unknown: kind == 2 })
    }
}

enum Value<'a> {
    Number(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Fixed64,
}

/// The fields of a protobuf message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("the file ends inside a number")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number has more than 64 bits".into())
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let left = self.0.len();
        let cut = usize::try_from(n).ok().and_then(|n| self.0.split_at_checked(n));
        let (bytes, rest) = cut.ok_or_else(|| format!("a field of {n} bytes where {left} are left"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), String> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let n = self.varint()?;
                Value::Bytes(self.take(n)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            other => return Err(format!("wire type {other} is not protobuf's")),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `<unk>` and `▁a`, as protobuf.
    fn small() -> Vec<u8> {
        let piece = |text: &str, score: f32, kind: u8| {
            let mut bytes = vec![0x0a, text.len() as u8];
            bytes.extend(text.as_bytes());
            bytes.push(0x15);
            bytes.extend(score.to_le_bytes());
            bytes.extend([0x18, kind]);
            let mut field = vec![0x0a, bytes.len() as u8];
            field.extend(bytes);
            field
        };
        [piece("<unk>", 0.0, 2), piece("▁a", -1.5, 1)].concat()
    }

    #[test]
    fn pieces_are_read() {
        let model = Model::parse(&small()).expect("a model");
        assert_eq!(model.unk_id, 0);
        assert_eq!((model.pieces[1].text.as_str(), model.pieces[1].score), ("▁a", -1.5));
    }

    #[test]
    fn any_cut_or_flipped_byte_is_an_error_or_a_model() {
        let bytes = small();
        for i in 0..bytes.len() {
            let _ = Model::parse(&bytes[..i]);
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[i] ^= 1 << bit;
                let _ = Model::parse(&bytes);
            }
        }
        assert_eq!(Model::parse(&[0x0a, 0xff, 0x01]).err().as_deref(), Some("a field of 255 bytes where 0 are left"));
    }
}
