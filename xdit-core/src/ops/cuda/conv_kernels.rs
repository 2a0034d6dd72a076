//! The own kernels of convolutions: which serves where, and their launches.
#![expect(unsafe_code, reason = "launches kernels")]

use burn::tensor::DType;
use cudarc::driver::sys;

use super::kernel;
use crate::cuda::CudaError;
use crate::cuda::cudnn::{Convolution, Maps};
use crate::cuda::gpu::{Gpu, Grid, args};
use crate::cuda::kernels::{Kernel, Source, Wgmma};
use crate::cuda::tensor_map::Boxes;

static HALF: Source = Source { name: "conv", code: concat!(include_str!("ampere.cuh"), include_str!("conv.cu")) };
static F32: Source = Source { name: "conv_f32", code: include_str!("conv_f32.cu") };

/// `conv.cu`'s shared memory: buffers of 128 rows of pixels and of weights, 40 numbers each.
const SHARED: u32 = 3 * 2 * 128 * 40 * 2;

/// Enqueues the kernel for any GPU.
///
/// # Safety
/// The operands are there, with the convolution's shapes.
pub unsafe fn convolve(gpu: &mut Gpu, dtype: DType, convolution: &Convolution, maps: Maps) -> Result<(), CudaError> {
    let Convolution { batch, height, width, c_in, c_out, k, .. } = *convolution;
    let (source, side, shared) = if dtype == DType::F32 { (&F32, 64, 0) } else { (&HALF, 128, SHARED) };
    let blocks = [(batch * height * width).div_ceil(side) as u32, c_out.div_ceil(side) as u32, 1];
    let [batch, height, width, c_in, c_out, k] = [batch, height, width, c_in, c_out, k].map(|n| n as i32);
    let Maps { x, weight, bias, residual, out } = maps;
    let params = args!(x, weight, bias, residual, out, batch, height, width, c_in, c_out, k);
    // SAFETY: by this function's contract; `convolve`'s parameters
    unsafe { gpu.launch(&kernel(source, "convolve", dtype, ""), Grid { blocks, threads: 256, shared }, &params) }
}

pub mod hopper {
    //! `conv_sm90.cu`

    use super::*;

    static SOURCE: Source =
        Source { name: "conv_sm90", code: concat!(include_str!("hopper.cuh"), include_str!("conv_sm90.cu")) };

    /// Sizes of an item and of the rings.
    #[derive(Debug, Clone, Copy)]
    struct Build {
        /// Channels.
        n: usize,
        /// Rows of 64 pixels of each of two workers.
        rows: usize,
        stages: usize,
    }

    impl Build {
        /// Items of 128 x 256 or of 256 x 128 sums: as many as two workers hold in registers.
        fn of(c_out: usize) -> Self {
            match c_out {
                256.. => Self { n: 256, rows: 1, stages: 3 },
                _ => Self { n: c_out.next_multiple_of(16).min(128), rows: 2, stages: 3 },
            }
        }

        fn shared(self) -> usize {
            let stage = 128 * self.rows * 128 + self.n * 128;
            // barriers, and room to begin at a multiple of 1024
            self.stages * stage + self.n.div_ceil(64) * 128 * self.rows * 128 + (2 * self.stages + 2) * 8 + 1024
        }
    }

    /// `CUtensorMap`s of the map, the weight, the residual and the result.
    #[repr(C, align(64))]
    struct TensorMaps([sys::CUtensorMap; 4]);

    /// Enqueues the kernel for Hopper.
    ///
    /// # Safety
    /// The operands are there, in bf16 or f16, with the convolution's shapes.
    pub unsafe fn convolve(
        gpu: &mut Gpu,
        dtype: DType,
        convolution: &Convolution,
        maps: Maps,
    ) -> Result<(), CudaError> {
        let Convolution { batch, height, width, c_in, c_out, k, .. } = *convolution;
        let build = Build::of(c_out);
        let Build { n, rows, stages } = build;
        let high = 8 * rows;
        let has_residual = maps.residual != 0;
        let residual = if has_residual { maps.residual } else { maps.out };
        let result = [batch, height, width, c_out];
        let tensors = TensorMaps([
            map(maps.x, [batch, height, width, c_in], [1, high, 16], dtype)?,
            map(maps.weight, [1, c_out, k * k, c_in], [1, n, 1], dtype)?,
            map(residual, result, [1, high, 16], dtype)?,
            map(maps.out, result, [1, 1, 16], dtype)?,
        ]);
        let tiles = [width.div_ceil(16), height.div_ceil(high), c_out.div_ceil(n)];
        let items = batch * tiles.iter().product::<usize>();
        let wgmma = Wgmma { scores: n, values: 8, is_f16: dtype == DType::F16 };
        let options = format!("-DN={n} -DROWS={rows} -DSTAGES={stages}");
        let kernel = Kernel { wgmma: Some(wgmma), ..kernel(&SOURCE, "convolve", dtype, &options) };
        let blocks = [(items as u32).min(gpu.n_sms), 1, 1];
        let grid = Grid { blocks, threads: 384, shared: build.shared() as u32 };
        let [c_in, c_out, k, items] = [c_in, c_out, k, items].map(|n| n as i32);
        let [tiles_x, tiles_y, tiles_c] = tiles.map(|n| n as i32);
        let (bias, has_residual) = (maps.bias, i32::from(has_residual));
        let params = args!(tensors, bias, c_in, c_out, k, tiles_x, tiles_y, tiles_c, items, has_residual);
        // SAFETY: by this function's contract; `convolve`'s parameters, and the maps describe the tensors
        unsafe { gpu.launch(&kernel, grid, &params) }
    }

    /// Describes `[a, b, c, d]` without gaps to the copy engine: boxes of 64 of the last, zeros outside.
    fn map(at: u64, dims: [usize; 4], boxed: [usize; 3], dtype: DType) -> Result<sys::CUtensorMap, CudaError> {
        let [_, b, c, d] = dims.map(|n| n as u64);
        let sizes = [d, c, b, dims[0] as u64];
        let strides = [2 * d, 2 * d * c, 2 * d * c * b];
        let boxed = [64, boxed[2] as u32, boxed[1] as u32, boxed[0] as u32];
        Boxes { at, sizes, strides, boxed, promoted: true }.map(dtype)
    }
}
