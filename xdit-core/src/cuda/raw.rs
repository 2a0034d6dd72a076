//! The memory behind a tensor, and work in the order of its stream.
//!
//! Everything that depends on the inner workings of Burn 0.22 and CubeCL 0.11 is here. Invariants:
//!
//! - CubeCL owns the device's memory and runs all that touches it on one thread a device. [`enqueue`] hands its work to
//!   that thread, in the caller's order; nothing is ever enqueued from elsewhere.
//! - A pointer is good until the work returns, no longer: CubeCL moves memory. Its pools give memory away in the order
//!   of the stream, so what is enqueued may go on after the last owner of a tensor is gone.
//! - Another thread's tensor was perhaps written in another stream: CubeCL makes the stream wait for it when it is told
//!   of all tensors that are read or written, which [`enqueue`] does.
//! - Work that fails, or was given a tensor that some failure left unwritten, marks what it was to write: reading that
//!   reports the first failure.
#![expect(unsafe_code, reason = "gives out raw pointers to device memory")]

use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use burn_dispatch::{BackendTensor, DispatchAutodiffContext, DispatchDevice, DispatchTensor, DispatchTensorKind};
use cubecl::cuda::CudaRuntime;
use cubecl::zspace::metadata::Metadata;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_server::runtime::Runtime;
use cubecl_server::server::{BufferBinding, IoError, ServerError, ServerStorage};
use cubecl_server::storage::{ComputeStorage, ManagedResource};
use cubecl_server::stream::{ExecuteScope, WriteScoped, failed_writing};

use super::error::CudaError;
use super::gpu::{Gpu, out_of_memory};
use crate::device::root_cause;

type CudaServer = <CudaRuntime as Runtime>::Server;
type GpuResource = <<CudaServer as ServerStorage>::Storage as ComputeStorage>::Resource;

/// A float tensor in a GPU's memory: what is behind one of Burn's.
#[derive(Debug, Clone)]
pub struct DeviceTensor(CubeTensor);

impl DeviceTensor {
    /// `None` if `x` is not on a CUDA device.
    pub fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        match x.clone().into_dispatch().kind {
            DispatchTensorKind::Cube(BackendTensor::Float(x)) if is_cuda(&x) => Some(Self(x)),
            _ => None,
        }
    }

    /// A number on `device`, for what is asked of the device alone; `None` if it is not a CUDA device.
    pub fn any(device: &Device) -> Option<Self> {
        match device.as_dispatch() {
            DispatchDevice::Cube(CubeDevice::Cuda(_)) => Self::of(&Tensor::<1>::empty([1], (device, DType::F32))),
            _ => None,
        }
    }

    fn thread(&self) -> DeviceHandle<CudaServer> {
        DeviceHandle::new(self.0.client.service_id().device)
    }

    fn binding(&self) -> BufferBinding {
        self.0.handle.clone().binding()
    }

    /// The inverse of [`DeviceTensor::of`].
    pub fn tensor<const D: usize>(self) -> Tensor<D> {
        let kind = DispatchTensorKind::Cube(BackendTensor::Float(self.0));
        Tensor::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
    }

    /// New memory on the same device, its rows densely packed, not yet written.
    pub fn empty(&self, dims: &[usize], dtype: DType) -> Self {
        Self(burn_cubecl::ops::numeric::empty_device_contiguous_dtype(
            self.0.client.clone(),
            self.0.device.clone(),
            Shape::from(dims.to_vec()),
            dtype,
        ))
    }

    /// The same memory seen otherwise.
    ///
    /// - `skip`: numbers in front of the view's first one, from this tensor's first one
    /// - `strides`: in numbers
    ///
    /// # Panics
    /// A view that leaves the tensor's memory.
    pub fn view(&self, skip: usize, dims: &[usize], strides: &[usize]) -> Self {
        let size = self.0.dtype.size();
        let last: usize = dims.iter().zip(strides).map(|(n, stride)| n.saturating_sub(1) * stride).sum();
        let bytes = self.0.handle.size_in_used();
        assert!(
            ((skip + last + 1) * size) as u64 <= bytes,
            "a view of {dims:?} by {strides:?} from {skip} leaves {bytes} bytes"
        );
        let mut handle = self.0.handle.clone();
        if skip > 0 {
            handle = handle.offset_start((skip * size) as u64);
        }
        let meta = Metadata::new(Shape::from(dims.to_vec()), strides.to_vec());
        Self(CubeTensor::new(self.0.client.clone(), handle, meta, self.0.device.clone(), self.0.dtype))
    }

    /// Whether the other is the same view of the same memory.
    pub fn is(&self, other: &Self) -> bool {
        let view = |x: &Self| (x.binding().claim_key().0, x.begins(), x.dims());
        let mut strides = self.dims().into_iter().zip(self.strides()).zip(other.strides());
        // a dimension of one has any stride
        view(self) == view(other) && strides.all(|((n, a), b)| n == 1 || a == b)
    }

    /// Where its first number is in its memory, in bytes.
    fn begins(&self) -> u64 {
        self.0.handle.offset_start.unwrap_or(0)
    }

    /// The tensors one after the other along `dim`, if they lie so in memory: a view.
    pub fn joined(parts: &[Self], dim: usize) -> Option<Self> {
        let (first, last) = (parts.first()?, parts.last()?);
        let memory = |x: &Self| x.binding().claim_key().0;
        let begins = Self::begins;
        let (strides, step) = (first.strides(), first.strides()[dim] * first.dtype().size());
        let mut expected = begins(first);
        // a dimension of one has any stride
        let alike = |part: &Self| {
            let (own, dims) = (part.strides(), part.dims());
            (0..dims.len()).all(|i| own[i] == strides[i] || (dims[i] == 1 && i != dim))
        };
        for part in parts {
            let same = memory(part) == memory(first) && alike(part) && part.dtype() == first.dtype();
            if !same || begins(part) != expected {
                return None;
            }
            expected += (part.dims()[dim] * step) as u64;
        }
        let mut dims = first.dims();
        dims[dim] = parts.iter().map(|part| part.dims()[dim]).sum();
        let mut handle = first.0.handle.clone();
        handle.offset_end = last.0.handle.offset_end;
        let meta = Metadata::new(Shape::from(dims), strides);
        Some(Self(CubeTensor::new(first.0.client.clone(), handle, meta, first.0.device.clone(), first.dtype())))
    }

    /// A copy with densely packed rows, if it is not that already.
    pub fn contiguous(self) -> Self {
        Self(burn_cubecl::kernel::into_contiguous(self.0))
    }

    /// Dimensions.
    pub fn dims(&self) -> Vec<usize> {
        self.0.meta.shape().to_vec()
    }

    /// The distance of neighbours along each dimension, in numbers.
    pub fn strides(&self) -> Vec<usize> {
        self.0.meta.strides().to_vec()
    }

    /// Whether its first number's address is a multiple of so many bytes, at most 256.
    pub fn begins_at_multiple_of(&self, bytes: u64) -> bool {
        self.begins().is_multiple_of(bytes)
    }

    /// Whether so many numbers from the first one on lie in its memory, as rows that were filled out do.
    pub fn reaches(&self, numbers: usize) -> bool {
        (numbers * self.0.dtype.size()) as u64 <= self.0.handle.size_in_used()
    }

    /// Precision.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }
}

/// The number of a CUDA device.
pub fn number(device: &Device) -> Option<i32> {
    match device.as_dispatch() {
        DispatchDevice::Cube(CubeDevice::Cuda(device)) => i32::try_from(device.index).ok(),
        _ => None,
    }
}

fn is_cuda(x: &CubeTensor) -> bool {
    matches!(x.device, CubeDevice::Cuda(_))
}

/// Runs `work` on the device's thread, after what wrote these tensors and before what is enqueued later.
///
/// `work` gets the device and the addresses of `reads` and `writes`, and enqueues on [`Gpu::stream`]; it writes all of
/// `writes`. A tensor to be changed in place is in both. What goes wrong shows when `writes` are read.
pub fn enqueue<const R: usize, const W: usize>(
    reads: [&DeviceTensor; R],
    writes: [&DeviceTensor; W],
    work: impl FnOnce(&mut Gpu, [u64; R], [u64; W]) -> Result<(), CudaError> + Send + 'static,
) {
    let device = writes[0].thread();
    let (reads, writes) = (reads.map(DeviceTensor::binding), writes.map(DeviceTensor::binding));
    let stream = StreamId::current();
    device.submit(move |server: &mut CudaServer| {
        let work = |gpu: &mut Gpu, from: &[u64], to: &[u64]| {
            let (from, to) = (std::array::from_fn(|i| from[i]), std::array::from_fn(|i| to[i]));
            work(gpu, from, to)
        };
        let _ = execute(server, stream, &reads, &writes, work);
    });
}

/// [`enqueue`] for any number of tensors to be written, of one device.
pub fn enqueue_into(
    writes: &[DeviceTensor],
    work: impl FnOnce(&mut Gpu, &[u64]) -> Result<(), CudaError> + Send + 'static,
) {
    let Some(device) = writes.first().map(DeviceTensor::thread) else { return };
    let writes: Vec<_> = writes.iter().map(DeviceTensor::binding).collect();
    let stream = StreamId::current();
    device.submit(move |server: &mut CudaServer| {
        let _ = execute(server, stream, &[], &writes, |gpu, _, to| work(gpu, to));
    });
}

/// Keeps a tensor's memory where it is, for as long as this lives.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "to be held is its purpose")] ManagedResource<GpuResource>);

/// Runs `work` on the device's thread, after what wrote these tensors of one device: with the device, their addresses and what
/// keeps them good.
///
/// `work` is not given these if some failure left one unwritten.
pub fn lend(
    xs: &[DeviceTensor],
    work: impl FnOnce(Result<(&mut Gpu, Vec<u64>, Vec<Held>), CudaError>) + Send + 'static,
) {
    let Some(device) = xs.first().map(DeviceTensor::thread) else { return };
    let bindings: Vec<_> = xs.iter().map(DeviceTensor::binding).collect();
    let stream = StreamId::current();
    device.submit(move |server: &mut CudaServer| {
        let held: Result<Vec<_>, ServerError> =
            bindings.iter().map(|binding| server.get_resource(binding.clone(), stream)).collect();
        let raw = server.write_streams().resolve(stream, bindings.iter()).map(|mut streams| streams.current().sys);
        let lost = |error: ServerError| CudaError::Lost { reason: root_cause(&error.to_string()) };
        match held.and_then(|held| Ok((held, raw?))).map_err(lost) {
            Err(error) => work(Err(error)),
            Ok((held, raw)) => {
                let at = held.iter().map(|held| held.resource().ptr).collect();
                // SAFETY: `get_resource` has made the device's context current on this thread
                let done = unsafe {
                    Gpu::on_this_thread(raw, |gpu| {
                        work(Ok((gpu, at, held.into_iter().map(Held).collect())));
                        Ok(())
                    })
                };
                debug_assert!(done.is_ok(), "a device that has computed is there");
            }
        }
    });
}

/// Has the device's thread begin with what it was given. CubeCL 0.11 hands it work in batches of 32, so that the last ones lie
/// until more comes or somebody waits for the device: too late for who waits on another device.
pub fn flush(x: &DeviceTensor) {
    x.thread().flush_queue();
}

/// [`enqueue`]s what writes `tensor`, and waits until that is done: what is enqueued may run later, but what goes wrong
/// with it is known at once.
pub fn enqueue_now<T: Send>(
    tensor: &DeviceTensor,
    work: impl FnOnce(&mut Gpu, u64) -> Result<T, CudaError> + Send,
) -> Result<T, CudaError> {
    let (stream, binding) = (StreamId::current(), tensor.binding());
    let done = tensor.thread().submit_blocking(move |server: &mut CudaServer| {
        execute(server, stream, &[], &[binding], |gpu, _, to| work(gpu, to[0]))
    });
    match done {
        Ok(done) => done.map_err(|error| CudaError::Refused { reason: root_cause(&error.to_string()) }),
        Err(error) => {
            let reason = error.message().unwrap_or("the thread of the device is gone").into();
            Err(CudaError::Refused { reason })
        }
    }
}

/// On the device's thread.
fn execute<T>(
    server: &mut CudaServer,
    stream: StreamId,
    reads: &[BufferBinding],
    writes: &[BufferBinding],
    work: impl FnOnce(&mut Gpu, &[u64], &[u64]) -> Result<T, CudaError>,
) -> Result<T, ServerError> {
    // the resources are held until all is enqueued: what is held is not moved
    let held: Result<Vec<_>, ServerError> =
        reads.iter().chain(writes).map(|binding| server.get_resource(binding.clone(), stream)).collect();
    let held = match held {
        Ok(held) => held,
        Err(error) => {
            let error = asked(&error).map_or(error, |bytes| said(&out_of_memory(bytes)));
            failed_writing(server, stream, writes.to_vec(), error.clone());
            return Err(error);
        }
    };
    let addresses: Vec<u64> = held.iter().map(|held| held.resource().ptr).collect();
    let (from, to) = addresses.split_at(reads.len());
    let done = ExecuteScope::over(server, stream, writes.to_vec()).execute(|server| {
        let mut streams = server.write_streams().resolve(stream, reads.iter().chain(writes))?;
        let raw = streams.current().sys;
        // SAFETY: `get_resource` has made the device's context current on this thread
        let done = unsafe { Gpu::on_this_thread(raw, |gpu| work(gpu, from, to)) };
        done.map_err(|error| said(&error))
    });
    drop(held);
    done.into_result()
}

fn said(error: &CudaError) -> ServerError {
    ServerError::Generic { reason: error.to_string(), backtrace: BackTrace::capture() }
}

/// The bytes that CubeCL asked the device for in vain, if that is the error.
fn asked(error: &ServerError) -> Option<u64> {
    match error {
        ServerError::Several { errors, .. } => errors.iter().find_map(asked),
        ServerError::Unwritten { root, .. } => asked(root),
        ServerError::Io(IoError::OutOfMemory { size, .. } | IoError::BufferTooBig { size, .. }) => Some(*size),
        _ => None,
    }
}
