//! Feature maps in memory with the channels innermost: launches of `pixels.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use burn::tensor::{DType, Tensor};

use super::kernel;
use crate::cuda::gpu::{Grid, args};
use crate::cuda::kernels::Source;
use crate::cuda::raw::{DeviceTensor, enqueue};

static SOURCE: Source = Source { name: "pixels", code: include_str!("pixels.cu") };

/// A feature map as kernels take it: `[batch, height, width, channels]` memory, densely packed, whole vectors of 8.
#[derive(Debug, Clone)]
pub(super) struct Pixels {
    pub x: DeviceTensor,
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    /// A multiple of 8, the channels of the tensor or the next such number.
    pub channels: usize,
}

impl Pixels {
    /// `None` if `x` is no float tensor of a GPU. A map in another order is copied, and filled out by zeros.
    ///
    /// - `x`: `[batch, channels, height, width]`
    pub fn of(x: &Tensor<4>) -> Option<Self> {
        let [batch, c, height, width] = x.dims();
        let x = DeviceTensor::of(x).filter(|x| is_float(x.dtype()))?;
        if x.dims().contains(&0) {
            return None;
        }
        let channels = c.next_multiple_of(8);
        let x = match packed(&x) {
            true => x.view(0, &[batch, height, width, c], &[height * width * c, width * c, c, 1]),
            false => arranged(&x, batch),
        };
        Some(Self { x, batch, height, width, channels })
    }

    /// New memory for a map of this precision, `factor` times as high and wide.
    pub fn like(&self, factor: usize, channels: usize) -> Self {
        let (batch, height, width) = (self.batch, factor * self.height, factor * self.width);
        Self { x: self.x.empty(&[batch, height, width, channels], self.x.dtype()), batch, height, width, channels }
    }

    /// The first `c` channels as `[batch, c, height, width]`, a view.
    pub fn tensor(self, c: usize) -> Tensor<4> {
        let Self { x, batch, height, width, channels } = self;
        let strides = [height * width * channels, 1, width * channels, channels];
        x.view(0, &[batch, c, height, width], &strides).tensor()
    }
}

pub(super) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Whether `[n, c, h, w]` lies as `[n, h, w, c]` without gaps.
pub(super) fn packed(x: &DeviceTensor) -> bool {
    let (dims, strides) = (x.dims(), x.strides());
    let [n, c, h, w] = dims[..] else { return false };
    let expected = [h * w * c, 1, w * c, c];
    let lies_so = [n, c, h, w].iter().zip(&strides).zip(expected).all(|((n, got), want)| *n == 1 || *got == want);
    lies_so && c.is_multiple_of(8) && x.begins_at_multiple_of(16)
}

/// `[n, c, h, w]` copied to `[all, h, w, c]` memory, `c` and `n` filled out by zeros.
pub(super) fn arranged(x: &DeviceTensor, all: usize) -> DeviceTensor {
    let (dims, strides) = (x.dims(), x.strides());
    let wide = dims[1].next_multiple_of(8);
    let out = x.empty(&[all, dims[2], dims[3], wide], x.dtype());
    let kernel = kernel(&SOURCE, "arrange", x.dtype(), "");
    let threads = all * dims[2] * dims[3] * wide / 8;
    let grid = Grid { blocks: [threads.div_ceil(256) as u32, 1, 1], threads: 256, shared: 0 };
    enqueue([x], [&out], move |gpu, [x], [y]| {
        let [n, c, h, w] = [dims[0] as i32, dims[1] as i32, dims[2] as i32, dims[3] as i32];
        let (all, wide) = (all as i32, wide as i32);
        let [sn, sc, sh, sw] = [strides[0] as i64, strides[1] as i64, strides[2] as i64, strides[3] as i64];
        // SAFETY: `arrange`'s parameters; the tensors hold what the sizes and strides say
        unsafe { gpu.launch(&kernel, grid, &args!(x, y, n, c, h, w, all, wide, sn, sc, sh, sw)) }
    });
    out
}

/// See [`crate::ops::upsample_nearest_2x`].
pub fn upsample_nearest_2x(x: &Tensor<4>) -> Option<Tensor<4>> {
    let c = x.dims()[1];
    let x = Pixels::of(x)?;
    let out = x.like(2, x.channels);
    let kernel = kernel(&SOURCE, "upsample", x.x.dtype(), "");
    let vectors = x.batch * x.height * x.width * x.channels / 8;
    let (width, channels) = (x.width as i32, x.channels as i32);
    enqueue([&x.x], [&out.x], move |gpu, [x], [y]| {
        let grid = Grid { blocks: [vectors.div_ceil(256) as u32, 1, 1], threads: 256, shared: 0 };
        let vectors = vectors as i64;
        // SAFETY: `upsample`'s parameters; the tensors hold what the sizes say
        unsafe { gpu.launch(&kernel, grid, &args!(x, y, vectors, width, channels)) }
    });
    Some(out.tensor(c))
}
