/// How the dense layers of a transformer's blocks are kept and multiplied, where it is not in the model's precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// e4m3, with an f32 scale for each row of the weight and for each token.
    Fp8,
}

impl Quantization {
    /// Whether a layer is kept so: those whose sides are no multiples of 16 stay as they are.
    ///
    /// - `shape`: of its weight, `[out, in]`
    pub fn serves(self, shape: [usize; 2]) -> bool {
        shape.iter().all(|side| side.is_multiple_of(16))
    }

    /// Bytes of such a weight.
    pub fn bytes(self, [d_out, d_in]: [usize; 2]) -> u64 {
        (d_out * d_in + d_out * size_of::<f32>()) as u64
    }
}
