//! Messages under way. The requests of the `mpi` crate borrow their buffers for a lexical scope; here receives are posted
//! and sends queued for as long as they take, so these own their buffers. All `unsafe` of this crate's MPI is here.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use burn::tensor::TensorData;
use mpi_sys::{self as ffi, MPI_Comm, MPI_Request};

use super::error::JoinError;

/// Bytes of one MPI message: its counts are C ints.
const MOST: usize = 1 << 30;

/// MPI said no.
#[derive(Debug)]
pub struct Refused;

/// MPI, which lets only the thread that started it call it.
pub struct Link {
    /// All processes. A raw pointer, so this stays on its thread.
    world: MPI_Comm,
    /// This process's number among all.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
}

/// What is sent.
pub enum Outgoing {
    Head(Vec<u8>),
    Body(Box<TensorData>),
}

/// What MPI still does. Who drops it early leaves the buffer to MPI for good.
pub struct Request<B> {
    raw: Vec<MPI_Request>,
    buffer: Option<B>,
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Head(bytes) => bytes,
            Self::Body(data) => data.as_bytes(),
        }
    }
}

impl Link {
    /// Starts MPI. Its errors come back from now on instead of ending the process.
    pub fn start() -> Result<Self, JoinError> {
        let (mut started, mut threads, mut rank, mut size) = (0, 0, 0, 0);
        // SAFETY: MPI's constants; null pointers stand for a command line that MPI need not see; MPI writes to the four
        // integers. It allows the first call at any time and from any thread, and the rest once it has started.
        unsafe {
            ffi::MPI_Initialized(&raw mut started);
            if started != 0 {
                return Err(JoinError::Started);
            }
            let level = ffi::RSMPI_THREAD_FUNNELED;
            let code = ffi::MPI_Init_thread(null_mut(), null_mut(), level, &raw mut threads);
            if code != 0 || threads < level {
                return Err(JoinError::Threads);
            }
            let world = ffi::RSMPI_COMM_WORLD;
            ffi::MPI_Comm_set_errhandler(world, ffi::RSMPI_ERRORS_RETURN);
            ffi::MPI_Comm_rank(world, &raw mut rank);
            ffi::MPI_Comm_size(world, &raw mut size);
            Ok(Self { world, rank: rank as usize, size: size as usize })
        }
    }

    /// Ends MPI, once all processes come to it. It is not ended by dropping this: a panic would wait for the others.
    pub fn end(self) {
        // SAFETY: it was started, on this thread, and nothing calls it afterwards, as this was the way to it.
        unsafe { ffi::MPI_Finalize() };
    }

    /// Starts to send `message` to process `to`.
    pub fn send(&self, to: usize, tag: i32, message: Outgoing) -> Result<Request<Outgoing>, Refused> {
        let mut request = Request { raw: Vec::new(), buffer: Some(message) };
        for chunk in request.buffer.iter().flat_map(|message| message.bytes().chunks(MOST)) {
            // SAFETY: MPI's constants. The bytes lie on the heap and stay where they are while the request moves; it
            // frees them once MPI is done, or never. They are at most `MOST`, and nobody writes to them.
            let (code, raw) = unsafe {
                let (at, mut raw) = (chunk.as_ptr().cast(), ffi::RSMPI_REQUEST_NULL);
                let (n, byte, comm) = (chunk.len() as i32, ffi::RSMPI_UINT8_T, self.world);
                (ffi::MPI_Isend(at, n, byte, to as i32, tag, comm, &raw mut raw), raw)
            };
            if code != 0 {
                return Err(Refused);
            }
            request.raw.push(raw);
        }
        Ok(request)
    }

    /// Posts the receive of the next message of process `from`, of at most as many bytes as the buffer has.
    pub fn receive(&self, from: usize, tag: i32, buffer: Vec<u8>) -> Result<Request<Vec<u8>>, Refused> {
        let mut request = Request { raw: Vec::new(), buffer: Some(buffer) };
        for chunk in request.buffer.iter_mut().flat_map(|buffer| buffer.chunks_mut(MOST)) {
            // SAFETY: MPI's constants. The vector's memory stays where it is while the request moves, which gives the
            // vector away once MPI is done, or never frees it; nobody looks at it before. The chunk is initialised and
            // at most `MOST` long.
            let (code, raw) = unsafe {
                let (at, mut raw) = (chunk.as_mut_ptr().cast(), ffi::RSMPI_REQUEST_NULL);
                let (n, byte, comm) = (chunk.len() as i32, ffi::RSMPI_UINT8_T, self.world);
                (ffi::MPI_Irecv(at, n, byte, from as i32, tag, comm, &raw mut raw), raw)
            };
            if code != 0 {
                return Err(Refused);
            }
            request.raw.push(raw);
        }
        Ok(request)
    }
}

impl<B> Request<B> {
    /// The buffer, once MPI is done with it.
    pub fn poll(&mut self) -> Result<Option<B>, Refused> {
        let mut done = 0;
        // SAFETY: the handles are those that MPI gave; it replaces the finished ones by its null handle, which it
        // accepts here as well. The status constant says that nobody wants to know.
        let code = unsafe {
            let n = self.raw.len() as i32;
            ffi::MPI_Testall(n, self.raw.as_mut_ptr(), &raw mut done, ffi::RSMPI_STATUSES_IGNORE)
        };
        match (code, done) {
            (0, 0) => Ok(None),
            (0, _) => {
                self.raw.clear();
                Ok(self.buffer.take())
            }
            _ => Err(Refused),
        }
    }
}

impl<B> Drop for Request<B> {
    fn drop(&mut self) {
        if !self.raw.is_empty() {
            std::mem::forget(self.buffer.take());
        }
    }
}
