//! From files into a GPU's memory, through a few buffers of pinned memory: while one is filled, the copy engine empties
//! the others. Numbers of another precision are converted on the device.
//!
//! Copies run in the order of the stream that computes: what reads a tensor later finds it there.
#![expect(unsafe_code, reason = "holds pinned memory")]

use std::ffi::c_void;
use std::ptr::NonNull;

use burn::tensor::{DType, Device};
use cudarc::driver::result::{self as driver, event};
use cudarc::driver::sys::{self, CUevent, CUevent_flags};

use super::error::CudaError;
use super::gpu::{Gpu, Grid, SCRATCH, args};
use super::kernels::{Kernel, Source};
use super::raw::{DeviceTensor, enqueue_now};

static CONVERT: Source = Source { name: "convert", code: include_str!("convert.cu") };

/// Three are on their way while one is filled. Pinning takes the system a third of a second for a GiB.
const N_BUFFERS: usize = 4;
/// Long enough for a copy to run at full speed, and for readers to share it.
const LONGEST: usize = 16 << 20;
/// Numbers begin at multiples of this in every buffer.
const SHORTEST: usize = 64 << 10;

const _: () = assert!(LONGEST <= SCRATCH && LONGEST.is_multiple_of(SHORTEST));

/// A device's buffers.
#[derive(Debug)]
pub struct Staging {
    /// Any memory of the device's.
    device: DeviceTensor,
    memory: NonNull<u8>,
    buffers: Ring,
    /// Recorded behind each buffer's last copy.
    copied: [CUevent; N_BUFFERS],
}

/// Which buffer is next, and which may still be read.
#[derive(Debug)]
struct Ring {
    /// Of a buffer, in bytes.
    len: usize,
    next: usize,
    used: [bool; N_BUFFERS],
}

impl Ring {
    /// Buffers no longer than so many bytes in all need.
    fn of(bytes: u64) -> Self {
        let share = usize::try_from(bytes.div_ceil(N_BUFFERS as u64)).unwrap_or(LONGEST).min(LONGEST);
        Self { len: share.next_multiple_of(SHORTEST).max(SHORTEST), next: 0, used: [false; N_BUFFERS] }
    }

    /// The next buffer, and whether it was copied from before.
    fn turn(&mut self) -> (usize, bool) {
        let i = self.next;
        self.next = (i + 1) % N_BUFFERS;
        (i, std::mem::replace(&mut self.used[i], true))
    }
}

/// Numbers that were copied to the device: where they are, what they are, and what they shall be.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    from: DType,
    to: DType,
    n: usize,
}

impl Staging {
    /// For the transfer of so many bytes in all; `None` if `device` is not a CUDA device.
    ///
    /// # Errors
    /// A driver that has no more pinned memory to give.
    pub fn new(device: &Device, bytes: u64) -> Result<Option<Self>, CudaError> {
        let Some(device) = DeviceTensor::any(device) else { return Ok(None) };
        let buffers = Ring::of(bytes);
        let len = N_BUFFERS * buffers.len;
        let (memory, copied) = enqueue_now(&device, move |_, _| {
            let mut copied = [0; N_BUFFERS];
            for event in &mut copied {
                let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING;
                *event = event::create(flags).map_err(CudaError::driver("cuEventCreate"))? as usize;
            }
            // SAFETY: given back when the buffers are dropped
            let memory = unsafe { driver::malloc_host(len, sys::CU_MEMHOSTALLOC_PORTABLE) }
                .map_err(CudaError::driver("cuMemHostAlloc"))?;
            Ok((memory as usize, copied))
        })?;
        let memory = NonNull::new(memory as *mut u8).expect("memory that the driver gave");
        Ok(Some(Self { device, memory, buffers, copied: copied.map(|event| event as CUevent) }))
    }

    /// A new tensor of `to`, from numbers of `from` that lie one after the other: `fill(at, part)` puts there what begins
    /// `at` bytes from the first one. `None` if these precisions are not known here.
    ///
    /// # Errors
    /// Those of `fill`; a device without the memory.
    pub fn upload<E: From<CudaError>>(
        &mut self,
        dims: &[usize],
        [from, to]: [DType; 2],
        fill: impl Fn(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Option<DeviceTensor>, E> {
        let known = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        if !known(from) || !known(to) {
            return Ok(None);
        }
        let tensor = self.device.empty(dims, to);
        let bytes = dims.iter().product::<usize>() * from.size();
        for at in (0..bytes).step_by(self.buffers.len) {
            let len = self.buffers.len.min(bytes - at);
            let (i, used) = self.buffers.turn();
            if used {
                self.wait(i)?;
            }
            // SAFETY: the buffer's own part of the memory, of which no copy reads any more; `self` is borrowed
            fill(at, unsafe { std::slice::from_raw_parts_mut(self.begin(i), len) })?;
            let (begin, copied) = (self.begin(i) as usize, self.copied[i] as usize);
            let numbers = Numbers { from, to, n: len / from.size() };
            enqueue_now(&tensor, move |gpu, address| {
                let there = address + (at / from.size() * to.size()) as u64;
                // SAFETY: the buffer is filled so far and waits for the event; the tensor reaches so far
                let done = unsafe { gpu.copy(begin as *const c_void, there, numbers) };
                // also behind a copy whose conversion failed: it may run
                // SAFETY: an event and a stream that are there
                unsafe { event::record(copied as CUevent, gpu.stream) }.map_err(CudaError::driver("cuEventRecord"))?;
                done
            })?;
        }
        Ok(Some(tensor))
    }

    fn begin(&self, i: usize) -> *mut u8 {
        // SAFETY: within the memory, which has all buffers
        unsafe { self.memory.as_ptr().add(i * self.buffers.len) }
    }

    /// Until the last copy from buffer `i` is done.
    fn wait(&self, i: usize) -> Result<(), CudaError> {
        // SAFETY: an event that lives as long as the buffers
        unsafe { event::synchronize(self.copied[i]) }.map_err(CudaError::driver("cuEventSynchronize"))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let done = (0..N_BUFFERS).filter(|i| self.buffers.used[*i]).all(|i| self.wait(i).is_ok());
        let (memory, copied) = (self.memory.as_ptr() as usize, self.copied.map(|event| event as usize));
        // a device that does not answer any more may still read: then the memory is left to it
        if done {
            let _ = enqueue_now(&self.device, move |_, _| {
                // SAFETY: made by `new`, and nothing uses them any more
                unsafe {
                    for event in copied {
                        event::destroy(event as CUevent).map_err(CudaError::driver("cuEventDestroy"))?;
                    }
                    driver::free_host(memory as *mut c_void).map_err(CudaError::driver("cuMemFreeHost"))
                }
            });
        }
    }
}

impl Gpu {
    /// Enqueues the copy of numbers from pinned memory, by way of the scratch memory if they are to be others.
    ///
    /// # Safety
    /// The numbers are at `from`, at most [`SCRATCH`] bytes, and stay there until the stream is through with this; at `to`
    /// there is room for them.
    unsafe fn copy(&mut self, from: *const c_void, to: u64, numbers: Numbers) -> Result<(), CudaError> {
        let Numbers { from: dtype, to: wanted, n } = numbers;
        let landing = if dtype == wanted { to } else { self.scratch()? };
        // SAFETY: by this function's contract
        unsafe { sys::cuMemcpyHtoDAsync_v2(landing, from, n * dtype.size(), self.stream) }
            .result()
            .map_err(CudaError::driver("cuMemcpyHtoDAsync"))?;
        if dtype == wanted {
            return Ok(());
        }
        let options = format!("-D{} -DFROM_{}", name(wanted), name(dtype));
        let kernel = Kernel { source: &CONVERT, name: "convert", options, wgmma: None };
        let blocks = [(n.div_ceil(256) as u32).min(8 * self.n_sms), 1, 1];
        let n = n as i64;
        // SAFETY: `convert`'s parameters; the numbers are in scratch memory by then, and fit where they go
        unsafe { self.launch(&kernel, Grid { blocks, threads: 256, shared: 0 }, &args!(landing, to, n)) }
    }
}

fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        _ => "F32",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_take_turns_and_know_what_is_read() {
        let mut ring = Ring::of(1 << 40);
        assert_eq!(ring.len, LONGEST);
        let first: Vec<_> = (0..N_BUFFERS).map(|_| ring.turn()).collect();
        assert_eq!(first, [(0, false), (1, false), (2, false), (3, false)]);
        assert_eq!([ring.turn(), ring.turn()], [(0, true), (1, true)]);
    }

    #[test]
    fn a_small_model_pins_little() {
        assert_eq!(Ring::of(0).len, SHORTEST);
        assert_eq!(Ring::of(1).len, SHORTEST);
        assert_eq!(Ring::of(4 * SHORTEST as u64 + 1).len, 2 * SHORTEST);
        assert_eq!(Ring::of(u64::MAX).len, LONGEST);
    }
}
