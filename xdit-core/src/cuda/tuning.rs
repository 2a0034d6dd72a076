//! Which of cuBLASLt's algorithms computes a product fastest: measured, as its own estimate is sometimes off by up to a fifth.
#![expect(unsafe_code, reason = "runs products and kernels on memory of its own")]

use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t as Algorithm;
use cudarc::driver::result::{self as driver, event};
use cudarc::driver::sys::CUevent_flags;

use super::error::CudaError;
use super::gpu::{Gpu, Grid, args};
use super::kernels::{Kernel, Source};

static SOURCE: Source = Source { name: "compare", code: include_str!("compare.cu") };

/// Products of fewer operations than this are over before the launch of the next one.
pub const WORTH_IT: f64 = 1e9;

/// What of the first candidate's time another must stay below to be taken instead. These runs are short; a model's are not,
/// and there the power that a card may draw decides. On an H200 those that won short runs by a few hundredths were
/// 3 to 9 % slower than the first in runs of 0.2 s at the shapes of FLUX and SD3, and the first was within 1 % of the best.
const CLEARLY: f32 = 0.94;

/// How often each candidate runs in each of two rounds.
const RUNS: usize = 3;

/// The first candidate, or one that gives its bits and is clearly faster, by trying them: a row has the same bits whichever
/// was fastest today.
///
/// - `bytes`: of the result
/// - `run`: enqueues the product with an algorithm, the result to an address
pub fn fastest(
    gpu: &mut Gpu,
    candidates: &[Algorithm],
    bytes: usize,
    mut run: impl FnMut(&mut Gpu, &Algorithm, u64) -> Result<(), CudaError>,
) -> Result<Algorithm, CudaError> {
    let memory = |bytes| {
        // SAFETY: given back below, after the stream is through with it
        unsafe { driver::malloc_sync(bytes) }.map_err(CudaError::driver("cuMemAlloc"))
    };
    let Ok(first) = memory(bytes) else { return Ok(candidates[0]) };
    let Ok(other) = memory(bytes + 8) else {
        give_back(&[first])?;
        return Ok(candidates[0]);
    };
    let result = race(gpu, candidates, [first, other], bytes, &mut run);
    give_back(&[first, other])?;
    result
}

fn give_back(memory: &[u64]) -> Result<(), CudaError> {
    for at in memory {
        // SAFETY: made by `fastest`; waits for the device
        unsafe { driver::free_sync(*at) }.map_err(CudaError::driver("cuMemFree"))?;
    }
    Ok(())
}

fn race(
    gpu: &mut Gpu,
    candidates: &[Algorithm],
    [first, other]: [u64; 2],
    bytes: usize,
    run: &mut impl FnMut(&mut Gpu, &Algorithm, u64) -> Result<(), CudaError>,
) -> Result<Algorithm, CudaError> {
    // what is added to is zero for all
    for at in [first, other] {
        // SAFETY: memory of this size
        unsafe { driver::memset_d8_async(at, 0, bytes, gpu.stream) }.map_err(CudaError::driver("cuMemsetD8Async"))?;
    }
    run(gpu, &candidates[0], first)?;
    let mut fit = vec![(&candidates[0], f32::INFINITY)];
    for candidate in &candidates[1..] {
        // SAFETY: memory of this size
        unsafe { driver::memset_d8_async(other, 0, bytes, gpu.stream) }
            .map_err(CudaError::driver("cuMemsetD8Async"))?;
        // one that fails to run is not fit
        if run(gpu, candidate, other).is_ok() && same_bits(gpu, first, other, bytes)? {
            fit.push((candidate, f32::INFINITY));
        }
    }
    let (start, end) = (new_event()?, new_event()?);
    for _ in 0..2 {
        for (candidate, best) in &mut fit {
            // SAFETY: events of this context
            unsafe { event::record(start, gpu.stream) }.map_err(CudaError::driver("cuEventRecord"))?;
            for _ in 0..RUNS {
                run(gpu, candidate, other)?;
            }
            // SAFETY: as above
            let time = unsafe {
                event::record(end, gpu.stream)
                    .and_then(|()| event::synchronize(end))
                    .and_then(|()| event::elapsed(start, end))
            };
            *best = best.min(time.map_err(CudaError::driver("cuEventElapsedTime"))?);
        }
    }
    for event in [start, end] {
        // SAFETY: made above
        unsafe { event::destroy(event) }.map_err(CudaError::driver("cuEventDestroy"))?;
    }
    let first = fit[0];
    let fastest = fit.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(first);
    Ok(*if fastest.1 < first.1 * CLEARLY { fastest } else { first }.0)
}

fn new_event() -> Result<cudarc::driver::sys::CUevent, CudaError> {
    event::create(CUevent_flags::CU_EVENT_DEFAULT).map_err(CudaError::driver("cuEventCreate"))
}

/// Waits for the device. The word behind `other` is the answer's.
fn same_bits(gpu: &mut Gpu, first: u64, other: u64, bytes: usize) -> Result<bool, CudaError> {
    let kernel = Kernel { source: &SOURCE, name: "compare", options: "-DF32".into(), wgmma: None };
    // the last two bytes of an odd number of halves are not looked at
    let (words, answer) = ((bytes / 4) as i64, other + bytes.next_multiple_of(4) as u64);
    let mut differs = [0_u32];
    // SAFETY: `compare`'s parameters; there are `bytes` behind both addresses and a word behind the second
    unsafe {
        driver::memset_d8_async(answer, 0, 4, gpu.stream).map_err(CudaError::driver("cuMemsetD8Async"))?;
        gpu.launch(
            &kernel,
            Grid { blocks: [1024, 1, 1], threads: 256, shared: 0 },
            &args!(first, other, words, answer),
        )?;
        driver::memcpy_dtoh_async(&mut differs, answer, gpu.stream).map_err(CudaError::driver("cuMemcpyDtoHAsync"))?;
        driver::stream::synchronize(gpu.stream).map_err(CudaError::driver("cuStreamSynchronize"))?;
    }
    Ok(differs == [0])
}
