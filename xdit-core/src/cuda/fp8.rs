//! What products of e4m3 numbers need of cuBLASLt and of the device.
#![expect(unsafe_code, reason = "calls cuBLASLt")]

use std::ffi::c_void;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::{self, cublasLtMatmulDescAttributes_t as Attribute, cudaDataType};
use libloading::os::unix::Library;

use super::devices::devices;
use super::error::CudaError;
use super::libraries;
use super::products::set;

/// `CUBLASLT_MATMUL_DESC_A_SCALE_MODE` and that of B. By their numbers: cudarc names what the CUDA of the building machine
/// has, which may be older than the library that is there at run time.
const SCALE_MODES: [u32; 2] = [31, 32];

/// `CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F`, a scale for each row of either factor: of cuBLASLt 12.9, for Hopper alone.
const OF_ROWS: i32 = 3;

/// Number and name of the version that knows them.
const VERSION: (usize, &str) = (120_900, "12.9");

/// Whether the device can do such products.
///
/// # Errors
/// Why not, in a line that names the device or the library.
pub fn check(index: usize) -> Result<(), CudaError> {
    if let Some(device) = devices()?.into_iter().find(|device| device.index == index && device.sm != 90) {
        return Err(CudaError::Fp8 { index, name: device.name, sm: device.sm });
    }
    let found = &libraries::load()?.cublaslt;
    // SAFETY: the library is loaded; takes nothing and returns a number
    if unsafe { sys::cublasLtGetVersion() } < VERSION.0 {
        let what = "a cuBLASLt that has products of FP8 rows";
        let (has, path) = (&found.version, found.path.display());
        let advice = format!("{path} is {has}, and {} is needed: `pip install nvidia-cublas`", VERSION.1);
        return Err(CudaError::Missing { what, advice });
    }
    Ok(())
}

/// Tells a product that its factors have scales, and of which type its bias is.
///
/// Tensor cores sum e4m3 products to about 14 bits. Without "fast accumulation" cuBLASLt adds every few of their sums up
/// in f32. At FLUX's shapes (H200, cuBLASLt 13.1) that takes 1 to 19 % longer, and the error against f64 is the same
/// 3.7e-2, that of the rounding to e4m3: so it is on.
///
/// # Safety
/// A description that is there.
pub(super) unsafe fn set_up(desc: sys::cublasLtMatmulDesc_t, bias: cudaDataType) -> Result<(), CublasError> {
    type Set = unsafe extern "C" fn(sys::cublasLtMatmulDesc_t, u32, *const c_void, usize) -> sys::cublasStatus_t;
    let (fast, of_rows) = (1_i8, OF_ROWS);
    // SAFETY: the attributes have these types
    unsafe {
        set(desc, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias)?;
        set(desc, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast)?;
    }
    let unsupported = CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
    let Ok(libraries) = libraries::load() else { return Err(unsupported) };
    // SAFETY: the library is loaded already, so nothing of it runs; the function has this type
    unsafe {
        let Ok(library) = Library::new(&libraries.cublaslt.path) else { return Err(unsupported) };
        let Ok(call) = library.get::<Set>(b"cublasLtMatmulDescSetAttribute\0") else { return Err(unsupported) };
        for mode in SCALE_MODES {
            call(desc, mode, (&raw const of_rows).cast(), size_of::<i32>()).result()?;
        }
    }
    Ok(())
}
