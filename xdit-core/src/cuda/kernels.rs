//! CUDA C++ to machine code: by NVRTC, once for a kernel, a version and an architecture; then from a file.
#![expect(unsafe_code, reason = "calls NVRTC")]

use std::ffi::{CStr, CString};
use std::fs;
use std::path::PathBuf;

use cudarc::nvrtc::{result as nvrtc, sys};
use sha2::{Digest, Sha256};

use super::error::CudaError;

/// What every source begins with.
const NUMBERS: &str = include_str!("numbers.cuh");

/// A file of kernels. It includes nothing: NVRTC needs no headers then.
#[derive(Debug)]
pub struct Source {
    /// Its name, for messages.
    pub name: &'static str,
    /// The text.
    pub code: &'static str,
}

/// One function of a [`Source`], compiled for some sizes.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Where it is.
    pub source: &'static Source,
    /// Its name there.
    pub name: &'static str,
    /// What is defined while compiling, `-DNAME=VALUE` and so on, apart by spaces.
    pub options: String,
    /// Which of Hopper's products it uses.
    pub wgmma: Option<Wgmma>,
}

/// The sizes of a kernel's products on Hopper's tensor cores. Inline assembly names each register of a result and cannot
/// loop, so these functions are written here: `wgmma_scores(d, a, b, add)` of two matrices in shared memory, and
/// `wgmma_values(d, a, b)`, which adds the product of a matrix in registers and one in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wgmma {
    /// Columns of `wgmma_scores`'s result.
    pub scores: usize,
    /// Columns of `wgmma_values`'s result.
    pub values: usize,
    /// f16 operands, else bf16.
    pub is_f16: bool,
}

impl Wgmma {
    fn code(self) -> String {
        let of = if self.is_f16 { "f16.f16" } else { "bf16.bf16" };
        let list = |n: usize, item: &dyn Fn(usize) -> String| (0..n).map(item).collect::<Vec<_>>().join(", ");
        // the result's registers come first, then the operands
        let parts = |columns: usize| {
            let n = columns / 2;
            (n, list(n, &|i| format!("%{i}")), list(n, &|i| format!("\"+f\"(d[{i}])")))
        };
        let instruction = |columns: usize| format!("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{of}");
        let (n, regs, out) = parts(self.scores);
        let (a, b, add, shape) = (n, n + 1, n + 2, instruction(self.scores));
        let scores = format!(
            "__device__ __forceinline__ void wgmma_scores(float (&d)[{n}], u64 a, u64 b, int add) {{\n  asm volatile(\
             \"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{add}, 0;\\n{shape} {{{regs}}}, %{a}, %{b}, p, 1, 1, 0, 0;\\n}}\" \
             : {out} : \"l\"(a), \"l\"(b), \"r\"(add));\n}}\n"
        );
        let (n, regs, out) = parts(self.values);
        let (shape, b) = (instruction(self.values), n + 4);
        let left = list(4, &|i| format!("%{}", n + i));
        let left_in = list(4, &|i| format!("\"r\"(a[{i}])"));
        let values = format!(
            "__device__ __forceinline__ void wgmma_values(float (&d)[{n}], const u32* a, u64 b) {{\n  asm volatile(\
             \"{shape} {{{regs}}}, {{{left}}}, %{b}, 1, 1, 1, 1;\" : {out} : {left_in}, \"l\"(b));\n}}\n"
        );
        scores + &values
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.source.name == other.source.name && self.name == other.name && self.options == other.options
    }
}

impl Eq for Kernel {}

impl std::hash::Hash for Kernel {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.options.hash(state);
    }
}

/// The machine code of a source for a compute capability (90 for 9.0).
///
/// # Errors
/// NVRTC refuses it, or says that the tensor cores' instructions will wait for each other (C7510 to C7514), which costs
/// half the speed.
pub fn machine_code(kernel: &Kernel, sm: u32) -> Result<Vec<u8>, CudaError> {
    // Hopper's and Blackwell's own instructions are in the "a" dialects alone
    let arch = if sm >= 90 { format!("sm_{sm}a") } else { format!("sm_{sm}") };
    let (name, options) = (kernel.source.name, kernel.options.as_str());
    let code = NUMBERS.to_owned() + &kernel.wgmma.map(Wgmma::code).unwrap_or_default() + kernel.source.code;
    let file = cache_file(name, &code, options, &arch)?;
    if let Some(code) = file.as_ref().and_then(|file| fs::read(file).ok()) {
        return Ok(code);
    }
    let code = compile(name, &code, options, &arch)?;
    if let Some(file) = file {
        keep(&file, &code);
    }
    Ok(code)
}

/// Writes a file in one step. Without it the kernel is compiled again next time, which is no reason to fail.
fn keep(file: &PathBuf, code: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let part = file.with_extension(format!("{}.part", std::process::id()));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&part, code));
    if written.and_then(|()| fs::rename(&part, file)).is_err() {
        let _ = fs::remove_file(part);
    }
}

/// `$XDG_CACHE_HOME/xdit/kernels` or `~/.cache/xdit/kernels`, where there is one of these.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("xdit/kernels"))
}

fn cache_file(name: &str, code: &str, options: &str, arch: &str) -> Result<Option<PathBuf>, CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(CudaError::nvrtc("nvrtcVersion"))?;
    let mut hash = Sha256::new();
    for part in [code, options, arch, &format!("{major}.{minor}")] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hash: String = hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(cache_folder().map(|cache| cache.join(format!("{name}-{arch}-{hash}.cubin"))))
}

fn compile(name: &'static str, code: &str, options: &str, arch: &str) -> Result<Vec<u8>, CudaError> {
    let text = CString::new(code).expect("kernels hold no zeros");
    let c_name = CString::new(name).expect("a name without zeros");
    let program = nvrtc::create_program(&text, Some(&c_name)).map_err(CudaError::nvrtc("nvrtcCreateProgram"))?;
    let arch_option = format!("--gpu-architecture={arch}");
    // lambdas that take types count as host functions without -default-device
    let fixed = [arch_option.as_str(), "--std=c++17", "-default-device", "--ptxas-options=-v"];
    let all: Vec<&str> = fixed.into_iter().chain(options.split_whitespace()).collect();
    // SAFETY: the program was just made, and is destroyed below
    let compiled = unsafe { nvrtc::compile_program(program, &all) };
    // SAFETY: as above
    let log = unsafe { nvrtc::get_program_log(program) }.map_err(CudaError::nvrtc("nvrtcGetProgramLog"))?;
    // SAFETY: NVRTC ends its log with a zero
    let log = unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned();
    let slow = ["C7510", "C7511", "C7512", "C7513", "C7514"].iter().any(|warning| log.contains(warning));
    let code = match compiled {
        Ok(()) if !slow => cubin(program),
        _ => Err(CudaError::Compile { name, arch: format!("{arch} {options}"), log }),
    };
    // SAFETY: nothing uses it any more
    unsafe { nvrtc::destroy_program(program) }.map_err(CudaError::nvrtc("nvrtcDestroyProgram"))?;
    code
}

fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>, CudaError> {
    let mut size = 0;
    // SAFETY: the program is compiled; writes a number
    unsafe { sys::nvrtcGetCUBINSize(program, &mut size) }.result().map_err(CudaError::nvrtc("nvrtcGetCUBINSize"))?;
    let mut code = vec![0_u8; size];
    // SAFETY: the buffer has the size that NVRTC asks for
    unsafe { sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()) }
        .result()
        .map_err(CudaError::nvrtc("nvrtcGetCUBIN"))?;
    Ok(code)
}
