//! What a device's thread keeps: compiled kernels, cuBLASLt's handle and plans, scratch memory.
#![expect(unsafe_code, reason = "calls the driver")]

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};

use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUfunction, CUmodule, CUstream};

use super::error::CudaError;
use super::kernels::{self, Kernel};
use super::libraries;
use crate::device::Memory;

thread_local! {
    /// CubeCL runs all that touches a device on one thread, so that these need no locks. By the device's number.
    static GPUS: RefCell<HashMap<i32, Gpu>> = RefCell::new(HashMap::new());
}

/// A device, as the work on its thread sees it.
#[derive(Debug)]
pub struct Gpu {
    /// Its number.
    pub device: i32,
    /// What to enqueue on.
    pub stream: CUstream,
    /// Streaming multiprocessors.
    pub n_sms: u32,
    /// Compute capability, 90 for 9.0.
    pub sm: u32,
    modules: HashMap<(&'static str, String), CUmodule>,
    functions: HashMap<Kernel, CUfunction>,
    /// By stream: what runs there runs one after the other, and may share it.
    scratch: HashMap<usize, u64>,
    /// By type, what the libraries keep.
    kept: HashMap<TypeId, Box<dyn Any>>,
}

/// Threads of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Blocks.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory that a block asks for.
    pub shared: u32,
}

impl Gpu {
    /// # Safety
    /// The context of `stream`'s device is current on this thread.
    pub(super) unsafe fn on_this_thread<R>(
        stream: CUstream,
        work: impl FnOnce(&mut Self) -> Result<R, CudaError>,
    ) -> Result<R, CudaError> {
        GPUS.with_borrow_mut(|gpus| {
            let mut device = 0;
            // SAFETY: by this function's contract
            unsafe { sys::cuCtxGetDevice(&mut device) }.result().map_err(CudaError::driver("cuCtxGetDevice"))?;
            let gpu = match gpus.entry(device) {
                Entry::Occupied(gpu) => gpu.into_mut(),
                Entry::Vacant(place) => place.insert(Self::new(device)?),
            };
            gpu.stream = stream;
            work(gpu)
        })
    }

    fn new(device: i32) -> Result<Self, CudaError> {
        libraries::load()?;
        let attribute = |which| {
            // SAFETY: reads a number of a device that is there
            let value = unsafe { driver::device::get_attribute(device, which) };
            value.map(|n| n as u32).map_err(CudaError::driver("cuDeviceGetAttribute"))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Self {
            device,
            stream: std::ptr::null_mut(),
            n_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            sm: 10 * major + minor,
            modules: HashMap::new(),
            functions: HashMap::new(),
            scratch: HashMap::new(),
            kept: HashMap::new(),
        })
    }

    /// What a library keeps with the device, made when it is asked for first.
    pub(super) fn kept<T: 'static>(
        &mut self,
        make: impl FnOnce() -> Result<T, CudaError>,
    ) -> Result<&mut T, CudaError> {
        let kept = match self.kept.entry(TypeId::of::<T>()) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(place) => place.insert(Box::new(make()?)),
        };
        Ok(kept.downcast_mut().expect("kept by its type"))
    }

    /// Scratch memory of the current stream, [`SCRATCH`] bytes: what is enqueued may use it until it is done.
    pub fn scratch(&mut self) -> Result<u64, CudaError> {
        if let Some(at) = self.scratch.get(&(self.stream as usize)) {
            return Ok(*at);
        }
        // SAFETY: lives as long as the process
        let at = unsafe { driver::malloc_sync(SCRATCH) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(SCRATCH as u64),
            _ => CudaError::driver("cuMemAlloc")(error),
        })?;
        self.scratch.insert(self.stream as usize, at);
        Ok(at)
    }

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// `params` are the kernel's, in type, number and order, and what they point at is there as the kernel expects.
    pub unsafe fn launch(&mut self, kernel: &Kernel, grid: Grid, params: &[*const c_void]) -> Result<(), CudaError> {
        let function = self.function(kernel, grid.shared)?;
        let mut params: Vec<*mut c_void> = params.iter().map(|param| param.cast_mut()).collect();
        let [x, y, z] = grid.blocks;
        // SAFETY: by this function's contract; parameters are copied before the call returns
        unsafe {
            driver::launch_kernel(function, (x, y, z), (grid.threads, 1, 1), grid.shared, self.stream, &mut params)
        }
        .map_err(CudaError::driver(kernel.name))
    }

    fn function(&mut self, kernel: &Kernel, shared: u32) -> Result<CUfunction, CudaError> {
        if let Some(function) = self.functions.get(kernel) {
            return Ok(*function);
        }
        let module = self.module(kernel)?;
        let name = CString::new(kernel.name).expect("a name without zeros");
        // SAFETY: the module is never unloaded
        let function =
            unsafe { driver::module::get_function(module, name) }.map_err(CudaError::driver("cuModuleGetFunction"))?;
        if shared > 48 << 10 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function that was just found
            unsafe { driver::function::set_function_attribute(function, attribute, shared as i32) }
                .map_err(CudaError::driver("cuFuncSetAttribute"))?;
        }
        self.functions.insert(kernel.clone(), function);
        Ok(function)
    }

    fn module(&mut self, kernel: &Kernel) -> Result<CUmodule, CudaError> {
        let key = (kernel.source.name, kernel.options.clone());
        if let Some(module) = self.modules.get(&key) {
            return Ok(*module);
        }
        let code = kernels::machine_code(kernel, self.sm)?;
        // SAFETY: machine code of NVRTC's, which the driver checks
        let module = unsafe { driver::module::load_data(code.as_ptr().cast()) }
            .map_err(CudaError::driver("cuModuleLoadData"))?;
        self.modules.insert(key, module);
        Ok(module)
    }
}

/// That of the current context's device.
pub(super) fn current_memory() -> Result<Memory, CudaError> {
    let mut device = 0;
    // SAFETY: writes a number
    unsafe { sys::cuCtxGetDevice(&mut device) }.result().map_err(CudaError::driver("cuCtxGetDevice"))?;
    let (free, total) = driver::mem_get_info().map_err(CudaError::driver("cuMemGetInfo"))?;
    Ok(Memory { device: format!("cuda:{device}"), free: free as u64, total: total as u64 })
}

/// What there is to say when the current context's device has not so many bytes.
pub(super) fn out_of_memory(asked: u64) -> CudaError {
    match current_memory() {
        Ok(memory) => CudaError::OutOfMemory { asked, memory },
        Err(error) => error,
    }
}

/// Addresses of variables, as [`Gpu::launch`] takes a kernel's parameters.
macro_rules! args {
    ($($x:ident),* $(,)?) => { [$((&raw const $x).cast::<std::ffi::c_void>()),*] };
}
pub(crate) use args;

/// Bytes of [`Gpu::scratch`]: what NVIDIA advises for cuBLASLt on Hopper.
pub const SCRATCH: usize = 32 << 20;
