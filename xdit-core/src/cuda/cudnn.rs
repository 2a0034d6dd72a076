//! Convolutions by cuDNN, where it is installed.
#![expect(unsafe_code, reason = "calls cuDNN")]

use std::collections::HashMap;
use std::ffi::{c_int, c_void};

use libloading::os::unix::Library;

use super::error::CudaError;
use super::gpu::{Gpu, SCRATCH};
use super::libraries;
use super::products::Kind;

/// `out = conv(x) + bias`, or that plus what is in a residual: `k x k`, stride 1, padding `k / 2`.
///
/// All maps are `[batch, height, width, channels]` densely packed, the weight is `[c_out, k, k, c_in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Convolution {
    /// Pictures.
    pub batch: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Channels of `x`, a multiple of 8.
    pub c_in: usize,
    /// Channels of `out`, a multiple of 8.
    pub c_out: usize,
    /// Side of the kernel, odd.
    pub k: usize,
    /// Of everything.
    pub kind: Kind,
}

/// Addresses of a [`Convolution`]'s operands.
#[derive(Debug, Clone, Copy)]
pub struct Maps {
    /// The map.
    pub x: u64,
    /// The weight.
    pub weight: u64,
    /// `[c_out]`
    pub bias: u64,
    /// What is added, of `out`'s shape; none if 0.
    pub residual: u64,
    /// The result.
    pub out: u64,
}

/// Descriptors and handles are pointers to what cuDNN keeps to itself.
type Opaque = *mut c_void;

/// Declares the functions of a library and how they are looked up.
macro_rules! functions {
    ($($name:ident($($arg:ty),* $(,)?);)*) => {
        #[derive(Debug, Clone, Copy)]
        #[expect(non_snake_case, reason = "cuDNN's names")]
        struct Functions { $($name: unsafe extern "C" fn($($arg),*) -> c_int,)* }

        impl Functions {
            fn of(library: &Library) -> Option<Self> {
                // SAFETY: the types are those of cuDNN 9's header
                Some(Self { $($name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }.ok()?,)* })
            }
        }
    };
}

functions! {
    cudnnCreate(*mut Opaque);
    cudnnSetStream(Opaque, *mut c_void);
    cudnnCreateTensorDescriptor(*mut Opaque);
    cudnnCreateFilterDescriptor(*mut Opaque);
    cudnnCreateConvolutionDescriptor(*mut Opaque);
    cudnnCreateActivationDescriptor(*mut Opaque);
    cudnnSetTensor4dDescriptor(Opaque, c_int, c_int, c_int, c_int, c_int, c_int);
    cudnnSetFilter4dDescriptor(Opaque, c_int, c_int, c_int, c_int, c_int, c_int);
    cudnnSetConvolution2dDescriptor(Opaque, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int);
    cudnnSetConvolutionMathType(Opaque, c_int);
    cudnnSetActivationDescriptor(Opaque, c_int, c_int, f64);
    cudnnGetConvolutionForwardWorkspaceSize(Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut usize);
    cudnnConvolutionBiasActivationForward(
        Opaque, *const f32, Opaque, u64, Opaque, u64, Opaque, c_int, u64, usize, *const f32, Opaque, u64, Opaque, u64,
        Opaque, Opaque, u64,
    );
}

/// `CUDNN_TENSOR_NHWC`
const NHWC: c_int = 1;
/// `CUDNN_CROSS_CORRELATION`: kernels are not turned round.
const CROSS_CORRELATION: c_int = 1;
/// `CUDNN_ACTIVATION_IDENTITY`
const IDENTITY: c_int = 5;
/// `CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM`, the one that adds biases and residuals without an activation.
const IMPLICIT_GEMM: c_int = 1;

impl Kind {
    /// `cudnnDataType_t`
    fn cudnn(self) -> c_int {
        match self {
            Self::F32 => 0,
            Self::F16 => 2,
            Self::Bf16 => 9,
        }
    }

    /// `cudnnMathType_t`: tensor cores for half precision; f32 stays f32, without TF32.
    fn math(self) -> c_int {
        match self {
            Self::F32 => 3,
            Self::F16 | Self::Bf16 => 1,
        }
    }
}

/// cuDNN's handle, and the descriptors of each shape.
#[derive(Debug)]
pub struct Convolutions {
    functions: Functions,
    handle: Opaque,
    identity: Opaque,
    plans: HashMap<Convolution, Option<Plan>>,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    x: Opaque,
    weight: Opaque,
    conv: Opaque,
    bias: Opaque,
    out: Opaque,
    /// Bytes of scratch memory.
    workspace: usize,
}

fn check(call: &'static str, status: c_int) -> Result<(), CudaError> {
    if status == 0 { Ok(()) } else { Err(CudaError::Cudnn { call, status }) }
}

impl Gpu {
    /// Enqueues a convolution; `false` if cuDNN is not there or does not serve it.
    ///
    /// # Safety
    /// The operands are there, with the convolution's shapes.
    pub unsafe fn convolve(&mut self, convolution: &Convolution, maps: Maps) -> Result<bool, CudaError> {
        let (scratch, stream) = (self.scratch()?, self.stream);
        let convolutions: &mut Option<Convolutions> = self.kept(Convolutions::new)?;
        let Some(convolutions) = convolutions else { return Ok(false) };
        let Some(plan) = convolutions.plan(convolution) else { return Ok(false) };
        let Convolutions { functions, handle, identity, .. } = *convolutions;
        let (one, add) = (1_f32, if maps.residual == 0 { 0_f32 } else { 1.0 });
        let residual = if maps.residual == 0 { maps.out } else { maps.residual };
        // SAFETY: by this function's contract; the plan's parts live as long as the process
        unsafe {
            check("cudnnSetStream", (functions.cudnnSetStream)(handle, stream.cast()))?;
            let status = (functions.cudnnConvolutionBiasActivationForward)(
                handle,
                &one,
                plan.x,
                maps.x,
                plan.weight,
                maps.weight,
                plan.conv,
                IMPLICIT_GEMM,
                scratch,
                plan.workspace,
                &add,
                plan.out,
                residual,
                plan.bias,
                maps.bias,
                identity,
                plan.out,
                maps.out,
            );
            check("cudnnConvolutionBiasActivationForward", status)?;
        }
        Ok(true)
    }
}

impl Convolutions {
    /// `None` where cuDNN is not installed.
    fn new() -> Result<Option<Self>, CudaError> {
        let Some(found) = &libraries::load()?.cudnn else { return Ok(None) };
        // SAFETY: it is loaded already
        let Ok(library) = (unsafe { Library::new(&found.path) }) else { return Ok(None) };
        let Some(functions) = Functions::of(&library) else { return Ok(None) };
        std::mem::forget(library);
        let (mut handle, mut identity) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the device's context is current; writes the handles
        unsafe {
            check("cudnnCreate", (functions.cudnnCreate)(&mut handle))?;
            check("cudnnCreateActivationDescriptor", (functions.cudnnCreateActivationDescriptor)(&mut identity))?;
            let status = (functions.cudnnSetActivationDescriptor)(identity, IDENTITY, 0, 0.0);
            check("cudnnSetActivationDescriptor", status)?;
        }
        Ok(Some(Self { functions, handle, identity, plans: HashMap::new() }))
    }

    fn plan(&mut self, convolution: &Convolution) -> Option<Plan> {
        if let Some(plan) = self.plans.get(convolution) {
            return *plan;
        }
        let plan = Plan::new(&self.functions, self.handle, convolution).ok();
        let plan = plan.filter(|plan| plan.workspace <= SCRATCH);
        self.plans.insert(*convolution, plan);
        plan
    }
}

impl Plan {
    fn new(functions: &Functions, handle: Opaque, convolution: &Convolution) -> Result<Self, CudaError> {
        let data = convolution.kind.cudnn();
        let Convolution { batch, height, width, c_in, c_out, k, kind } = *convolution;
        let [batch, height, width, c_in, c_out, k] = [batch, height, width, c_in, c_out, k].map(|n| n as c_int);
        let made = |make: unsafe extern "C" fn(*mut Opaque) -> c_int| {
            let mut made = std::ptr::null_mut();
            // SAFETY: writes the new descriptor
            check("cudnnCreateDescriptor", unsafe { make(&mut made) }).map(|()| made)
        };
        let tensor = |[n, c, h, w]: [c_int; 4]| {
            let desc = made(functions.cudnnCreateTensorDescriptor)?;
            // SAFETY: a descriptor that was just made
            let status = unsafe { (functions.cudnnSetTensor4dDescriptor)(desc, NHWC, data, n, c, h, w) };
            check("cudnnSetTensor4dDescriptor", status).map(|()| desc)
        };
        let mut plan = Self {
            x: tensor([batch, c_in, height, width])?,
            weight: made(functions.cudnnCreateFilterDescriptor)?,
            conv: made(functions.cudnnCreateConvolutionDescriptor)?,
            bias: tensor([1, c_out, 1, 1])?,
            out: tensor([batch, c_out, height, width])?,
            workspace: 0,
        };
        let pad = k / 2;
        // SAFETY: descriptors that were just made; the last call writes a number
        unsafe {
            let status = (functions.cudnnSetFilter4dDescriptor)(plan.weight, data, NHWC, c_out, c_in, k, k);
            check("cudnnSetFilter4dDescriptor", status)?;
            let sums = Kind::F32.cudnn();
            let set = functions.cudnnSetConvolution2dDescriptor;
            check("cudnnSetConvolution2dDescriptor", set(plan.conv, pad, pad, 1, 1, 1, 1, CROSS_CORRELATION, sums))?;
            check("cudnnSetConvolutionMathType", (functions.cudnnSetConvolutionMathType)(plan.conv, kind.math()))?;
            let size = functions.cudnnGetConvolutionForwardWorkspaceSize;
            let status = size(handle, plan.x, plan.weight, plan.conv, plan.out, IMPLICIT_GEMM, &mut plan.workspace);
            check("cudnnGetConvolutionForwardWorkspaceSize", status)?;
        }
        Ok(plan)
    }
}
