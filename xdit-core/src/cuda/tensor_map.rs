//! How the copy engine of Hopper (TMA) is told of a tensor.
#![expect(unsafe_code, reason = "calls the driver")]

use std::ffi::c_void;

use burn::tensor::DType;
use cudarc::driver::sys::{self, CUtensorMap, CUtensorMapDataType as Kind, CUtensorMapL2promotion as Promotion};

use super::error::CudaError;

/// A tensor of four dimensions in bf16 or f16, the innermost one first, fetched in boxes: rows of 128 bytes, swizzled, zeros
/// outside.
#[derive(Debug, Clone, Copy)]
pub struct Boxes {
    /// Address of the first number.
    pub at: u64,
    /// In numbers.
    pub sizes: [u64; 4],
    /// From one to the next of all dimensions but the innermost, in bytes.
    pub strides: [u64; 3],
    /// Of a box, in numbers.
    pub boxed: [u32; 4],
    /// Whether the cache fetches 256 bytes at a time.
    pub promoted: bool,
}

impl Boxes {
    /// As the driver writes it.
    ///
    /// # Errors
    /// What the copy engine cannot fetch: addresses and strides that are no multiples of 16, boxes of more than 256.
    pub fn map(&self, dtype: DType) -> Result<CUtensorMap, CudaError> {
        let kind = match dtype {
            DType::F16 => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => Kind::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let promotion = match self.promoted {
            true => Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            false => Promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
        };
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: four dimensions, three strides, a box of four; writes the map
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                kind,
                4,
                self.at as *mut c_void,
                self.sizes.as_ptr(),
                self.strides.as_ptr(),
                self.boxed.as_ptr(),
                [1_u32; 4].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                promotion,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(CudaError::driver("cuTensorMapEncodeTiled"))?;
        Ok(map)
    }
}
