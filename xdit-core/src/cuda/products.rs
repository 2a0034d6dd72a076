//! Dense products by cuBLASLt.
#![expect(unsafe_code, reason = "calls cuBLASLt")]

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue, cublasLtMatmulAlgo_t as Algorithm,
    cublasLtMatmulAlgoConfigAttributes_t as Config, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayoutAttribute_t as Layout, cudaDataType,
};

use super::error::CudaError;
use super::fp8;
use super::gpu::{Gpu, SCRATCH};
use super::tuning;

/// `out = act(x weight^T + bias + added)`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of `x` and of `out`, of each of the batch.
    pub m: usize,
    /// Columns of `x` and of the weight.
    pub k: usize,
    /// Rows of the weight, columns of `out`.
    pub n: usize,
    /// From row to row of `x`, of the weight, of `out` and of what is added, in numbers.
    pub strides: [usize; 4],
    /// How many such products there are, by the same weight.
    pub batch: usize,
    /// From one of the batch to the next of `x`, of `out` and of what is added, in numbers.
    pub batch_strides: [usize; 3],
    /// Of all four, but for an `out` that is f32, and for factors that are FP8.
    pub kind: Kind,
    /// Whether `x` and the weight are e4m3, each row with a scale.
    pub fp8: bool,
    /// Whether there is a bias, `[n]`.
    pub has_bias: bool,
    /// Whether GELU's approximation by tanh follows.
    pub gelu: bool,
    /// Whether something of `out`'s shape is added, before the GELU.
    pub adds: bool,
    /// Whether `out` is f32 whatever the others are.
    pub out_is_f32: bool,
    /// What all addresses are multiples of.
    pub alignment: u32,
}

/// Precisions; sums are f32 in all of them, and TF32 is in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// f32
    F32,
    /// f16
    F16,
    /// bf16
    Bf16,
}

impl Kind {
    fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn data(self) -> cudaDataType {
        match self {
            Self::F32 => cudaDataType::CUDA_R_32F,
            Self::F16 => cudaDataType::CUDA_R_16F,
            Self::Bf16 => cudaDataType::CUDA_R_16BF,
        }
    }
}

/// Addresses of a [`Product`]'s operands.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    /// `[batch, m, k]`
    pub x: u64,
    /// `[n, k]`
    pub weight: u64,
    /// `[n]`; not read where there is none
    pub bias: u64,
    /// f32, of each row of `x` and of the weight; not read where they are not FP8
    pub scales: [u64; 2],
    /// `[batch, m, n]`, perhaps `out` itself; not read if nothing is added
    pub added: u64,
    /// `[batch, m, n]`
    pub out: u64,
}

impl Operands {
    /// The largest power of two up to 256 that divides all addresses.
    pub fn alignment(&self) -> u32 {
        let all = self.x | self.weight | self.bias | self.added | self.out | 256;
        1 << all.trailing_zeros()
    }
}

/// cuBLASLt's handle, and how each product is computed.
#[derive(Debug)]
pub struct Products {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Product, Plan>,
}

/// cuBLASLt counts by columns: its first matrix is the weight, its second one `x`, both transposed in its view.
#[derive(Debug, Clone, Copy)]
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    added: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: Algorithm,
}

impl Gpu {
    /// Enqueues a product.
    ///
    /// # Safety
    /// The operands are there, with the product's shapes, strides and alignment.
    pub unsafe fn product(&mut self, product: &Product, operands: Operands) -> Result<(), CudaError> {
        let plan = self.plan(product, operands)?;
        self.run(product, &plan, operands, &plan.algorithm)
    }

    /// How the product is computed: decided when it is computed first.
    fn plan(&mut self, product: &Product, operands: Operands) -> Result<Plan, CudaError> {
        let products = self.kept(Products::new)?;
        if let Some(plan) = products.plans.get(product) {
            return Ok(*plan);
        }
        let handle = products.handle;
        let failed = |error| CudaError::Product { m: product.m, k: product.k, n: product.n, error };
        let (mut plan, candidates) = Plan::new(handle, product, operands).map_err(failed)?;
        let work = 2.0 * (product.batch * product.m) as f64 * product.k as f64 * product.n as f64;
        if candidates.len() > 1 && work >= tuning::WORTH_IT {
            let last = (product.batch - 1) * product.batch_strides[1] + (product.m - 1) * product.strides[2];
            let bytes = (last + product.n) * if product.out_is_f32 { 4 } else { product.kind.size() };
            plan.algorithm = tuning::fastest(self, &candidates, bytes, |gpu, algorithm, out| {
                gpu.run(product, &plan, Operands { out, ..operands }, algorithm)
            })?;
        }
        self.kept(Products::new)?.plans.insert(*product, plan);
        Ok(plan)
    }

    fn run(
        &mut self,
        product: &Product,
        plan: &Plan,
        operands: Operands,
        algorithm: &Algorithm,
    ) -> Result<(), CudaError> {
        let (scratch, stream) = (self.scratch()?, self.stream);
        let handle = self.kept(Products::new)?.handle;
        let failed = |error| CudaError::Product { m: product.m, k: product.k, n: product.n, error };
        let (one, beta) = (1_f32, if product.adds { 1_f32 } else { 0.0 });
        // SAFETY: by the contract of `product`; the plan's parts live as long as the process
        unsafe {
            point(plan.desc, product, operands).map_err(failed)?;
            lt::matmul(
                handle,
                plan.desc,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                operands.weight as *const c_void,
                plan.weight,
                operands.x as *const c_void,
                plan.x,
                operands.added as *const c_void,
                plan.added,
                operands.out as *mut c_void,
                plan.out,
                std::ptr::from_ref(algorithm),
                scratch as *mut c_void,
                SCRATCH,
                stream.cast(),
            )
            .map_err(failed)
        }
    }
}

impl Products {
    fn new() -> Result<Self, CudaError> {
        let handle = lt::create_handle().map_err(CudaError::cublas("cublasLtCreate"))?;
        Ok(Self { handle, plans: HashMap::new() })
    }
}

impl Plan {
    /// And all algorithms that serve it, the one of the plan first.
    ///
    /// - `operands`: of the first such product
    fn new(
        handle: sys::cublasLtHandle_t,
        product: &Product,
        operands: Operands,
    ) -> Result<(Self, Vec<Algorithm>), CublasError> {
        let kind = product.kind.data();
        let data = if product.fp8 { cudaDataType::CUDA_R_8F_E4M3 } else { kind };
        let out_data = if product.out_is_f32 { cudaDataType::CUDA_R_32F } else { kind };
        let layout = |data, columns: usize, rows: usize, stride, batch_stride: usize| {
            let layout = lt::create_matrix_layout(data, columns as u64, rows as u64, stride as i64)?;
            let (batch, step) = (product.batch as i32, batch_stride as i64);
            if batch > 1 {
                // SAFETY: the attributes have these types
                unsafe {
                    set_layout(layout, Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch)?;
                    set_layout(layout, Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step)?;
                }
            }
            Ok::<_, CublasError>(layout)
        };
        let [x_batch, out_batch, added_batch] = product.batch_strides;
        let [x_stride, weight_stride, out_stride, added_stride] = product.strides;
        let desc = lt::create_matmul_desc(Compute::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)?;
        let epilogue = match (product.gelu, product.has_bias) {
            (false, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (false, true) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (true, false) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (true, true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
        };
        let transposed = 1_i32;
        // SAFETY: the attributes have these types
        unsafe {
            set(desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
            set(desc, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            if product.fp8 {
                fp8::set_up(desc, kind)?;
                // it is asked for algorithms with all addresses in place, as scales have no default
                point(desc, product, operands)?;
            }
        }
        let weight = layout(data, product.k, product.n, weight_stride, 0)?;
        let of = |m| {
            Ok::<_, CublasError>((
                layout(data, product.k, m, x_stride, x_batch)?,
                layout(out_data, product.n, m, added_stride, added_batch)?,
                layout(out_data, product.n, m, out_stride, out_batch)?,
            ))
        };
        let (x, added, out) = of(product.m)?;
        let mut plan = Self { desc, weight, x, added, out, algorithm: Algorithm { data: [0; 8] } };
        // For so few rows cuBLASLt has nothing but cut sums at some shapes: then as for more, in FP8 for as many as it takes.
        let (few, most) = if product.fp8 { FP8_ROWS } else { (FEW_ROWS, FEW_ROWS) };
        let mut rows = product.m.max(few);
        let candidates = loop {
            let (x, added, out) = of(rows)?;
            let (candidates, in_one_go) = Self { x, added, out, ..plan }.choose(handle, product.alignment)?;
            if in_one_go || rows >= most {
                break candidates;
            }
            rows *= 2;
        };
        plan.algorithm = candidates[0];
        Ok((plan, candidates))
    }

    /// The fastest by cuBLASLt's estimate of those that sum each result in one go, from the first summand to the last: a row
    /// then has the same bits whatever others are computed with it, however few (invariant 6). With few rows cuBLASLt
    /// would rather cut the sum in pieces. The first one of all, and `false`, where there is no
    /// such.
    fn choose(&self, handle: sys::cublasLtHandle_t, alignment: u32) -> Result<(Vec<Algorithm>, bool), CublasError> {
        const MANY: usize = 32;
        let preference = lt::create_matmul_pref()?;
        let set = |which, value: *const c_void, size| {
            // SAFETY: the attributes have these sizes
            unsafe { lt::set_matmul_pref_attribute(preference, which, value, size) }
        };
        let scratch = SCRATCH;
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const scratch).cast(), 8)?;
        for which in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(which, (&raw const alignment).cast(), 4)?;
        }
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(MANY);
        let mut n = 0;
        // SAFETY: there is room for as many as are asked for, and `n` are written
        unsafe {
            let at = found.as_mut_ptr();
            let Self { desc, weight, x, added, out, .. } = *self;
            let many = MANY as i32;
            sys::cublasLtMatmulAlgoGetHeuristic(handle, desc, weight, x, added, out, preference, many, at, &mut n)
                .result()?;
            found.set_len(n as usize);
            lt::destroy_matmul_pref(preference)?;
        }
        let all = found.iter().map(|found| found.algo);
        let whole: Vec<_> = all.clone().filter(sums_in_one_go).take(CANDIDATES).collect();
        if !whole.is_empty() {
            return Ok((whole, true));
        }
        let first = all.take(1).collect::<Vec<_>>();
        let not_supported = CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
        if first.is_empty() { Err(not_supported) } else { Ok((first, false)) }
    }
}

/// How many of them are tried.
const CANDIDATES: usize = 8;

/// Below so many rows products are computed as for so many.
const FEW_ROWS: usize = 256;
/// The same in FP8, and as for how many at most: for 256 rows by weights of 12288 columns every algorithm cuts the sums.
const FP8_ROWS: (usize, usize) = (512, 4096);

/// Tells a description where the bias is, and the scales.
///
/// # Safety
/// A description that is there.
unsafe fn point(desc: sys::cublasLtMatmulDesc_t, product: &Product, operands: Operands) -> Result<(), CublasError> {
    // SAFETY: the attributes have these types
    unsafe {
        if product.has_bias {
            set(desc, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &operands.bias)?;
        }
        if product.fp8 {
            // cuBLASLt's first factor is the weight
            let [x, weight] = operands.scales;
            set(desc, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &weight)?;
            set(desc, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x)?;
        }
    }
    Ok(())
}

fn sums_in_one_go(algorithm: &Algorithm) -> bool {
    let read = |which| -> Option<u32> {
        let (mut value, mut written) = (0_u32, 0);
        // SAFETY: both attributes are numbers of 32 bits
        let status = unsafe {
            sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, which, (&raw mut value).cast(), 4, &mut written)
        };
        status.result().ok().map(|()| value)
    };
    let pieces = read(Config::CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
    let scheme = read(Config::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
    pieces.is_some_and(|n| n <= 1) && scheme == Some(0)
}

/// # Safety
/// The attribute's type is `T`.
unsafe fn set_layout<T>(layout: sys::cublasLtMatrixLayout_t, which: Layout, value: &T) -> Result<(), CublasError> {
    // SAFETY: by this function's contract
    unsafe { lt::set_matrix_layout_attribute(layout, which, std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// # Safety
/// The attribute's type is `T`.
pub(super) unsafe fn set<T>(desc: sys::cublasLtMatmulDesc_t, which: Attribute, value: &T) -> Result<(), CublasError> {
    // SAFETY: by this function's contract
    unsafe { lt::set_matmul_desc_attribute(desc, which, std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
