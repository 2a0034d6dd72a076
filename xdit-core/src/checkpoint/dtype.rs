use std::fmt;

/// The type of a stored tensor's elements, as safetensors spells it.
#[allow(missing_docs, non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl Dtype {
    /// Every dtype of the format, with its name in a header and its size in bits.
    const ALL: [(Dtype, &'static str, usize); 22] = [
        (Dtype::BOOL, "BOOL", 8),
        (Dtype::F4, "F4", 4),
        (Dtype::F6_E2M3, "F6_E2M3", 6),
        (Dtype::F6_E3M2, "F6_E3M2", 6),
        (Dtype::U8, "U8", 8),
        (Dtype::I8, "I8", 8),
        (Dtype::F8_E5M2, "F8_E5M2", 8),
        (Dtype::F8_E4M3, "F8_E4M3", 8),
        (Dtype::F8_E8M0, "F8_E8M0", 8),
        (Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8),
        (Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8),
        (Dtype::I16, "I16", 16),
        (Dtype::U16, "U16", 16),
        (Dtype::F16, "F16", 16),
        (Dtype::BF16, "BF16", 16),
        (Dtype::I32, "I32", 32),
        (Dtype::U32, "U32", 32),
        (Dtype::F32, "F32", 32),
        (Dtype::C64, "C64", 64),
        (Dtype::F64, "F64", 64),
        (Dtype::I64, "I64", 64),
        (Dtype::U64, "U64", 64),
    ];

    /// The dtype that a header calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n, _)| *n == name).map(|(d, ..)| *d)
    }

    /// The name in a header, `"BF16"`.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The size of an element in bits; below 8 for the packed float formats.
    pub fn bits(self) -> usize {
        Self::ALL[self as usize].2
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name` and `bits` index the table by discriminant.
    #[test]
    fn table_is_in_the_order_of_the_enum() {
        for (i, (dtype, name, _)) in Dtype::ALL.iter().enumerate() {
            assert_eq!(*dtype as usize, i);
            assert_eq!(Dtype::from_name(name), Some(*dtype));
        }
        assert_eq!(Dtype::from_name("bf16"), None);
    }
}
