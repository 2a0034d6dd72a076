//! The GPUs of this machine.
#![expect(unsafe_code, reason = "asks the driver")]

use burn::tensor::Device;
use cudarc::driver::result as driver;
use cudarc::driver::sys::CUdevice_attribute as Attribute;

use super::error::CudaError;
use super::gpu::current_memory;
use super::libraries;
use super::raw::{DeviceTensor, enqueue_now};
use crate::device::Memory;

/// A GPU.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// As in `--device cuda:N`.
    pub index: usize,
    /// The vendor's.
    pub name: String,
    /// Bytes in all.
    pub memory: u64,
    /// Bytes that nobody has taken.
    pub free: u64,
    /// Compute capability, 90 for 9.0.
    pub sm: u32,
    /// Streaming multiprocessors.
    pub n_sms: u32,
}

impl DeviceInfo {
    /// Which kernels compute attention in bf16 and f16, and why no better ones.
    pub fn attention(&self) -> &'static str {
        match self.sm {
            90 => "own kernels for Hopper (TMA, wgmma), with a mask or a bias those for Ampere and later (mma.sync)",
            80.. => {
                "own kernels for Ampere and later (mma.sync); there are none for this architecture's own instructions"
            }
            _ => "none: bf16 and f16 need compute capability 8.0",
        }
    }
}

/// All GPUs, in the driver's order.
///
/// # Errors
/// A library that is not there; a driver that does not answer.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    libraries::load()?;
    driver::init().map_err(CudaError::driver("cuInit"))?;
    let n = driver::device::get_count().map_err(CudaError::driver("cuDeviceGetCount"))?;
    (0..n).map(device).collect()
}

/// The memory of `device`; `None` if it is not a CUDA device, or does not say.
pub fn memory(device: &Device) -> Option<Memory> {
    enqueue_now(&DeviceTensor::any(device)?, |_, _| current_memory()).ok()
}

fn device(index: i32) -> Result<DeviceInfo, CudaError> {
    let device = driver::device::get(index).map_err(CudaError::driver("cuDeviceGet"))?;
    let attribute = |which| {
        // SAFETY: reads a number of a device that is there
        let value = unsafe { driver::device::get_attribute(device, which) };
        value.map(|n| n as u32).map_err(CudaError::driver("cuDeviceGetAttribute"))
    };
    // SAFETY: the context is given back below
    let context =
        unsafe { driver::primary_ctx::retain(device) }.map_err(CudaError::driver("cuDevicePrimaryCtxRetain"))?;
    // SAFETY: a context that is held
    unsafe { driver::ctx::set_current(context) }.map_err(CudaError::driver("cuCtxSetCurrent"))?;
    let (free, memory) = driver::mem_get_info().map_err(CudaError::driver("cuMemGetInfo"))?;
    let info = DeviceInfo {
        index: index as usize,
        name: driver::device::get_name(device).map_err(CudaError::driver("cuDeviceGetName"))?,
        memory: memory as u64,
        free: free as u64,
        sm: 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        n_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    };
    // SAFETY: retained above
    unsafe { driver::primary_ctx::release(device) }.map_err(CudaError::driver("cuDevicePrimaryCtxRelease"))?;
    Ok(info)
}
