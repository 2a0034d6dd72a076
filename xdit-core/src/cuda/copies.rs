//! Copies between strided tensors by the copy engines: in rows, which need no kernel.
#![expect(unsafe_code, reason = "enqueues copies")]

use cudarc::driver::sys::{self, CUmemorytype, CUstream};

use super::error::CudaError;
use super::raw::{DeviceTensor, enqueue};

/// Layers of rows that go from one place to another, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rows {
    /// Where they begin.
    from: usize,
    to: usize,
    /// How long one is, and how many there are.
    width: usize,
    height: usize,
    /// From one to the next.
    from_pitch: usize,
    to_pitch: usize,
    /// How many such layers there are, and from one to the next in rows.
    depth: usize,
    from_rows: usize,
    to_rows: usize,
}

/// How a strided tensor becomes another of the same dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    rows: Vec<Rows>,
    /// Bytes of a number.
    size: usize,
}

impl Copies {
    /// As few as there can be. Where the last dimension has gaps, numbers are copied one by one: slow.
    ///
    /// - `from`, `to`: strides
    /// - `size`: bytes of a number
    pub fn new(dims: &[usize], from: &[usize], to: &[usize], size: usize) -> Self {
        if dims.contains(&0) {
            return Self { rows: Vec::new(), size };
        }
        // the innermost first: the length of a row, the number of rows, then what is left
        let mut axes = (0..dims.len()).rev().filter(|axis| dims[*axis] != 1).peekable();
        let mut width = 1;
        while let Some(axis) = axes.next_if(|axis| from[*axis] == width && to[*axis] == width) {
            width *= dims[axis];
        }
        let (mut height, mut pitches) = (1, [width; 2]);
        if let Some(axis) = axes.next() {
            (height, pitches) = (dims[axis], [from[axis], to[axis]]);
        }
        let goes_on = |axis: &usize, height: usize| [from[*axis], to[*axis]] == pitches.map(|pitch| height * pitch);
        while let Some(axis) = axes.next_if(|axis| goes_on(axis, height)) {
            height *= dims[axis];
        }
        let [from_pitch, to_pitch] = pitches;
        let mut rows =
            Rows { from: 0, to: 0, width, height, from_pitch, to_pitch, depth: 1, from_rows: height, to_rows: height };
        let is_layer = |axis: &usize| {
            from[*axis].is_multiple_of(from_pitch)
                && to[*axis].is_multiple_of(to_pitch)
                && from[*axis] / from_pitch >= height
                && to[*axis] / to_pitch >= height
        };
        if let Some(axis) = axes.next_if(is_layer) {
            rows = Rows { depth: dims[axis], from_rows: from[axis] / from_pitch, to_rows: to[axis] / to_pitch, ..rows };
        }
        let mut rows = vec![rows];
        for axis in axes {
            let step = |i: usize| {
                move |rows: &Rows| Rows { from: rows.from + i * from[axis], to: rows.to + i * to[axis], ..*rows }
            };
            rows = (0..dims[axis]).flat_map(|i| rows.iter().map(step(i)).collect::<Vec<_>>()).collect();
        }
        Self { rows, size }
    }

    /// Enqueues them. The places may be on different devices that reach each other's memory.
    ///
    /// # Safety
    /// There is memory at both addresses as the dimensions and strides say.
    pub unsafe fn enqueue(&self, from: u64, to: u64, stream: CUstream) -> Result<(), CudaError> {
        let bytes = |numbers: usize| numbers * self.size;
        for rows in &self.rows {
            if rows.height * rows.depth == 1 {
                let (from, to) = (from + bytes(rows.from) as u64, to + bytes(rows.to) as u64);
                // SAFETY: by this function's contract
                unsafe { sys::cuMemcpyAsync(to, from, bytes(rows.width), stream) }
                    .result()
                    .map_err(CudaError::driver("cuMemcpyAsync"))?;
                continue;
            }
            let copy = sys::CUDA_MEMCPY3D {
                srcXInBytes: 0,
                srcY: 0,
                srcZ: 0,
                srcLOD: 0,
                // the driver finds out which device an address belongs to
                srcMemoryType: CUmemorytype::CU_MEMORYTYPE_UNIFIED,
                srcHost: std::ptr::null(),
                srcDevice: from + bytes(rows.from) as u64,
                srcArray: std::ptr::null_mut(),
                reserved0: std::ptr::null_mut(),
                srcPitch: bytes(rows.from_pitch),
                srcHeight: rows.from_rows,
                dstXInBytes: 0,
                dstY: 0,
                dstZ: 0,
                dstLOD: 0,
                dstMemoryType: CUmemorytype::CU_MEMORYTYPE_UNIFIED,
                dstHost: std::ptr::null_mut(),
                dstDevice: to + bytes(rows.to) as u64,
                dstArray: std::ptr::null_mut(),
                reserved1: std::ptr::null_mut(),
                dstPitch: bytes(rows.to_pitch),
                dstHeight: rows.to_rows,
                WidthInBytes: bytes(rows.width),
                Height: rows.height,
                Depth: rows.depth,
            };
            // SAFETY: by this function's contract
            unsafe { sys::cuMemcpy3DAsync_v2(&copy, stream) }.result().map_err(CudaError::driver("cuMemcpy3DAsync"))?;
        }
        Ok(())
    }
}

/// Copies a tensor to where another of its dimensions and precision is, on the same device.
pub fn copy(from: &DeviceTensor, to: &DeviceTensor) {
    let copies = Copies::new(&from.dims(), &from.strides(), &to.strides(), from.dtype().size());
    enqueue([from], [to], move |gpu, [from], [to]| {
        // SAFETY: both tensors are of these dimensions and strides
        unsafe { copies.enqueue(from, to, gpu.stream) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the copies move, as places of both tensors in the order of the dimensions.
    fn moved(copies: &Copies) -> Vec<(usize, usize)> {
        let mut all: Vec<_> = copies
            .rows
            .iter()
            .flat_map(|rows| (0..rows.depth).flat_map(move |z| (0..rows.height).map(move |y| (rows, y, z))))
            .flat_map(|(rows, y, z)| (0..rows.width).map(move |x| (rows, x, y, z)))
            .map(|(rows, x, y, z)| {
                let (from, to) = (y + z * rows.from_rows, y + z * rows.to_rows);
                (rows.from + from * rows.from_pitch + x, rows.to + to * rows.to_pitch + x)
            })
            .collect();
        all.sort_unstable();
        all
    }

    fn wanted(dims: &[usize], from: &[usize], to: &[usize]) -> Vec<(usize, usize)> {
        let mut all = vec![(0, 0)];
        for ((n, from), to) in dims.iter().zip(from).zip(to) {
            all = all.iter().flat_map(|(a, b)| (0..*n).map(move |i| (a + i * from, b + i * to))).collect();
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn every_number_goes_where_it_belongs() {
        for (dims, from, to, n) in [
            // packed: one run
            (vec![2, 3, 4], vec![12, 4, 1], vec![12, 4, 1], 1),
            // some heads of rows of queries, keys and values to rows of those heads
            (vec![1, 5, 2, 4], vec![999, 36, 4, 1], vec![999, 8, 4, 1], 1),
            // the same of two in a batch
            (vec![2, 5, 2, 4], vec![200, 36, 4, 1], vec![40, 8, 4, 1], 2),
            // as layers, where the batch begins at a row
            (vec![2, 5, 2, 4], vec![216, 36, 4, 1], vec![48, 8, 4, 1], 1),
            // where rows go on from one in the batch to the next
            (vec![2, 5, 2, 4], vec![180, 36, 4, 1], vec![40, 8, 4, 1], 1),
            // heads to their columns of wider rows
            (vec![1, 5, 2, 4], vec![40, 8, 4, 1], vec![90, 18, 4, 1], 1),
            // heads outermost, tokens within
            (vec![3, 5, 4], vec![4, 12, 1], vec![20, 4, 1], 3),
            // three runs far apart
            (vec![3, 8], vec![100, 1], vec![8, 1], 1),
            // a transposition
            (vec![4, 3], vec![1, 4], vec![3, 1], 4),
            // a column
            (vec![4, 1], vec![1, 1], vec![9, 1], 1),
            (vec![], vec![], vec![], 1),
            (vec![1, 1], vec![7, 7], vec![3, 3], 1),
        ] {
            let copies = Copies::new(&dims, &from, &to, 2);
            assert_eq!(moved(&copies), wanted(&dims, &from, &to), "{dims:?} {from:?} {to:?}");
            assert_eq!(copies.rows.len(), n, "{dims:?} {from:?} {to:?}");
        }
        assert_eq!(Copies::new(&[4, 0], &[9, 1], &[3, 1], 2).rows, []);
    }
}
