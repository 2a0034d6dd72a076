//! Tensors of one GPU for another of the same process: the receiver's copy engine reads them where the sender's kernels wrote
//! them, rows with gaps too, into their place. No kernel packs anything, no host waits for a device, and the receiver may
//! compute something else meanwhile.
//!
//! - The sender's stream marks by an event when a tensor is there, and the receiver's when its place is free. Copies wait for
//!   both, in a stream of their own for each sender; what the receiver computes with them waits for the copies.
//! - The receiver keeps the tensor until the copy is over, so that its memory is not given away before.
//! - A receiver's thread waits for the sender's to have marked the tensor, which was asked for before any receiver could
//!   know of it: so threads never wait in a circle.
#![expect(unsafe_code, reason = "calls the driver")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::result::{self as driver, event};
use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult, CUstream, CUstream_flags};

use super::copies::Copies;
use super::error::CudaError;
use super::gpu::Gpu;
use super::libraries;
use super::raw::{DeviceTensor, Held, enqueue_into, flush, lend};

/// How long a receiver waits for a sender's thread, which has only to come to its turn.
const DEADLINE: Duration = Duration::from_secs(60);

/// Tensors of one device that others of the process may fetch.
#[derive(Debug)]
pub struct Offer {
    xs: Vec<DeviceTensor>,
    place: Arc<Place>,
}

/// Where the tensors are, once their device's thread has said so.
#[derive(Debug, Default)]
struct Place {
    known: Mutex<Option<Result<Marked, String>>>,
    told: Condvar,
}

/// Memory of tensors, and the event after which they are written.
#[derive(Debug)]
struct Marked {
    addresses: Vec<u64>,
    device: i32,
    written: Event,
    _held: Vec<Held>,
}

impl Offer {
    /// Of what they hold after all that their device was told to do so far.
    pub fn of(xs: Vec<DeviceTensor>) -> Self {
        let place = Arc::new(Place::default());
        let tell = Arc::clone(&place);
        lend(&xs, move |lent| {
            let mark = |(gpu, addresses, held): (&mut Gpu, Vec<u64>, Vec<Held>)| {
                Ok(Marked { addresses, device: gpu.device, written: Event::record(gpu.stream)?, _held: held })
            };
            let marked = lent.and_then(mark).map_err(|error: CudaError| error.to_string());
            *tell.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(marked);
            tell.told.notify_all();
        });
        xs.iter().take(1).for_each(flush);
        Self { xs, place }
    }

    /// Copies each of them to where one of `into` is, of the same dimensions and precision.
    ///
    /// - `free`: since when nothing uses the memory of `into`
    pub fn fetch(self, into: &[DeviceTensor], free: &Mark) {
        let free = free.clone();
        let copies = |(x, into): (&DeviceTensor, &DeviceTensor)| {
            Copies::new(&x.dims(), &x.strides(), &into.strides(), x.dtype().size())
        };
        let copies: Vec<_> = self.xs.iter().zip(into).map(copies).collect();
        enqueue_into(into, move |gpu, to| {
            let copied = self.place.with(|from| {
                let way = gpu.way_from(from.device)?;
                from.written.hold_back(way)?;
                free.hold_back(way)?;
                for ((copies, from), to) in copies.iter().zip(&from.addresses).zip(to) {
                    // SAFETY: both tensors are of these dimensions and strides; the memory is reached, and written before
                    unsafe { copies.enqueue(*from, *to, way) }?;
                }
                Event::record(way)
            })?;
            copied.hold_back(gpu.stream)?;
            let borrowed = gpu.kept(|| Ok(Borrowed::default()))?;
            borrowed.0.retain(|(copied, _)| !copied.is_over());
            borrowed.0.push((copied, self));
            Ok(())
        });
    }
}

impl Place {
    /// Waits until it is known.
    fn with<T>(&self, f: impl FnOnce(&Marked) -> Result<T, CudaError>) -> Result<T, CudaError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.told.wait_timeout_while(known, DEADLINE, |known| known.is_none());
        match &*known.unwrap_or_else(PoisonError::into_inner).0 {
            Some(Ok(marked)) => f(marked),
            Some(Err(reason)) => Err(CudaError::Lost { reason: reason.clone() }),
            None => Err(CudaError::Silent { seconds: DEADLINE.as_secs() }),
        }
    }
}

/// What this device still copies, and the events after which it does not.
#[derive(Debug, Default)]
struct Borrowed(Vec<(Event, Offer)>);

/// A point in what a device was told to do.
#[derive(Debug, Clone)]
pub struct Mark(Arc<Mutex<Option<Event>>>);

impl Mark {
    /// Behind all that the device of `x` was told to do so far.
    pub fn of(x: &DeviceTensor) -> Self {
        let mark = Self(Arc::default());
        let set = mark.clone();
        lend(std::slice::from_ref(x), move |lent| {
            // what went wrong with the memory shows to whoever writes there
            let event = lent.and_then(|(gpu, ..)| Event::record(gpu.stream)).ok();
            *set.0.lock().unwrap_or_else(PoisonError::into_inner) = event;
        });
        mark
    }

    /// What is enqueued in a stream from here on waits for it. On the device's thread, which comes to the mark first.
    fn hold_back(&self, stream: CUstream) -> Result<(), CudaError> {
        let event = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        event.as_ref().map_or(Ok(()), |event| event.hold_back(stream))
    }
}

/// By device that this one fetches from, the stream in which it does.
#[derive(Debug, Default)]
struct Ways(HashMap<i32, CUstream>);

impl Gpu {
    /// The stream for copies from a device, whose memory this one may read from now on.
    fn way_from(&mut self, device: i32) -> Result<CUstream, CudaError> {
        let here = self.device;
        match self.kept(|| Ok(Ways::default()))?.0.entry(device) {
            Entry::Occupied(way) => Ok(*way.get()),
            Entry::Vacant(place) => {
                if device != here {
                    reach(device)?;
                }
                let mut stream = std::ptr::null_mut();
                // SAFETY: a stream of the current context, which lives as long as the process
                unsafe { sys::cuStreamCreate(&mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) }
                    .result()
                    .map_err(CudaError::driver("cuStreamCreate"))?;
                Ok(*place.insert(stream))
            }
        }
    }
}

/// Lets the current device read the memory of another.
fn reach(peer: i32) -> Result<(), CudaError> {
    // SAFETY: a device that has computed; its context is CubeCL's and is never given back
    unsafe {
        let context = driver::primary_ctx::retain(peer).map_err(CudaError::driver("cuDevicePrimaryCtxRetain"))?;
        match sys::cuCtxEnablePeerAccess(context, 0) {
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            other => other.result().map_err(CudaError::driver("cuCtxEnablePeerAccess")),
        }
    }
}

/// Whether each of these devices can read every other's memory.
pub fn reach_each_other(devices: &[i32]) -> bool {
    if libraries::load().is_err() || driver::init().is_err() {
        return false;
    }
    let reaches = |from: i32, to: i32| {
        let mut can = 0;
        // SAFETY: asks two devices by their numbers
        let answer = unsafe { sys::cuDeviceCanAccessPeer(&mut can, from, to) };
        from == to || (answer.result().is_ok() && can == 1)
    };
    devices.iter().all(|from| devices.iter().all(|to| reaches(*from, *to)))
}

/// A point in a stream.
#[derive(Debug)]
struct Event(CUevent);

// SAFETY: events may be used from any thread
unsafe impl Send for Event {}

impl Event {
    /// Behind what is in a stream so far.
    fn record(stream: CUstream) -> Result<Self, CudaError> {
        let event =
            event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(CudaError::driver("cuEventCreate"))?;
        let event = Self(event);
        // SAFETY: an event and a stream of the current context
        unsafe { event::record(event.0, stream) }.map_err(CudaError::driver("cuEventRecord"))?;
        Ok(event)
    }

    /// What is enqueued in a stream from here on waits for it, also on another device.
    fn hold_back(&self, stream: CUstream) -> Result<(), CudaError> {
        // SAFETY: an event that was recorded, and a stream of the current context
        unsafe { sys::cuStreamWaitEvent(stream, self.0, 0) }.result().map_err(CudaError::driver("cuStreamWaitEvent"))
    }

    fn is_over(&self) -> bool {
        // SAFETY: an event that was recorded
        let answer = unsafe { sys::cuEventQuery(self.0) };
        answer != CUresult::CUDA_ERROR_NOT_READY
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; the driver keeps what streams still wait for
        let _ = unsafe { event::destroy(self.0) };
    }
}
