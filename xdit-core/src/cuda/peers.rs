//! Tensors of one GPU for another of the same process: the receiver's copy engine reads them where the sender's kernels wrote
//! them, rows with gaps too, into their place. No kernel packs anything, and no host waits for a device.
//!
//! - The sender's stream marks by an event when a tensor is there; the receiver's waits for it.
//! - The receiver keeps the tensor until the copy is over, so that its memory is not given away before.
//! - A receiver's thread waits for the sender's to have marked the tensor, which was asked for before any receiver could
//!   know of it: so threads never wait in a circle.
#![expect(unsafe_code, reason = "calls the driver")]

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::result::{self as driver, event};
use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult};

use super::copies::Copies;
use super::error::CudaError;
use super::gpu::Gpu;
use super::libraries;
use super::raw::{DeviceTensor, Held, enqueue, lend};

/// How long a receiver waits for a sender's thread, which has only to come to its turn.
const DEADLINE: Duration = Duration::from_secs(60);

/// A tensor that other devices of the process may fetch.
#[derive(Debug)]
pub struct Offer {
    x: DeviceTensor,
    place: Arc<Place>,
}

/// Where the tensor is, once its device's thread has said so.
#[derive(Debug, Default)]
struct Place {
    known: Mutex<Option<Result<Marked, String>>>,
    told: Condvar,
}

/// A tensor's memory, and the event after which it is written.
#[derive(Debug)]
struct Marked {
    address: u64,
    device: i32,
    written: Event,
    _held: Held,
}

impl Offer {
    /// Of what `x` holds after all that its device was told to do so far.
    pub fn of(x: DeviceTensor) -> Self {
        let place = Arc::new(Place::default());
        let tell = Arc::clone(&place);
        lend(&x, move |lent| {
            let mark = |(gpu, address, held): (&mut Gpu, u64, Held)| {
                Ok(Marked { address, device: gpu.device, written: Event::record(gpu)?, _held: held })
            };
            let marked = lent.and_then(mark).map_err(|error: CudaError| error.to_string());
            *tell.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(marked);
            tell.told.notify_all();
        });
        Self { x, place }
    }

    /// Copies it to where `into` is, a tensor of the same dimensions and precision on another device.
    pub fn fetch(self, into: &DeviceTensor) {
        let copies = Copies::new(&self.x.dims(), &self.x.strides(), &into.strides(), self.x.dtype().size());
        enqueue([], [into], move |gpu, [], [to]| {
            self.place.with(|from| {
                gpu.reach(from.device)?;
                from.written.hold_back(gpu)?;
                // SAFETY: both tensors are of these dimensions and strides; the memory is reached, and written before
                unsafe { copies.enqueue(from.address, to, gpu.stream) }
            })?;
            let copied = Event::record(gpu)?;
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

/// The devices whose memory this one may read.
#[derive(Debug, Default)]
struct Reached(HashSet<i32>);

impl Gpu {
    /// Lets this device read the memory of another.
    fn reach(&mut self, peer: i32) -> Result<(), CudaError> {
        if peer == self.device || self.kept(|| Ok(Reached::default()))?.0.contains(&peer) {
            return Ok(());
        }
        // SAFETY: a device that has computed; its context is CubeCL's and is never given back
        unsafe {
            let context = driver::primary_ctx::retain(peer).map_err(CudaError::driver("cuDevicePrimaryCtxRetain"))?;
            match sys::cuCtxEnablePeerAccess(context, 0) {
                CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {}
                other => other.result().map_err(CudaError::driver("cuCtxEnablePeerAccess"))?,
            }
        }
        self.kept(|| Ok(Reached::default()))?.0.insert(peer);
        Ok(())
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
    /// Here.
    fn record(gpu: &Gpu) -> Result<Self, CudaError> {
        let event =
            event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(CudaError::driver("cuEventCreate"))?;
        let event = Self(event);
        // SAFETY: an event and a stream of the current context
        unsafe { event::record(event.0, gpu.stream) }.map_err(CudaError::driver("cuEventRecord"))?;
        Ok(event)
    }

    /// What is enqueued from here on waits for it, also on another device.
    fn hold_back(&self, gpu: &Gpu) -> Result<(), CudaError> {
        // SAFETY: an event that was recorded, and a stream of the current context
        unsafe { sys::cuStreamWaitEvent(gpu.stream, self.0, 0) }
            .result()
            .map_err(CudaError::driver("cuStreamWaitEvent"))
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
