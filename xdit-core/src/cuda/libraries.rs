//! Where NVIDIA's libraries are: where the system's loader finds them, in a CUDA toolkit, or in the packages that
//! `pip install` puts into a Python environment.
#![expect(unsafe_code, reason = "loads libraries")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::error::CudaError;
use super::headers;

/// A library that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its file, or its name where the system's loader found it.
    pub path: PathBuf,
    /// As it says itself, `13.0` or `9.13.1`.
    pub version: String,
}

/// What was found on this machine.
#[derive(Debug, Clone)]
pub struct Libraries {
    /// The newest CUDA that the driver serves.
    pub driver: Found,
    /// The compiler.
    pub nvrtc: Found,
    /// Matrix products.
    pub cublaslt: Found,
    /// Convolutions, and attention; optional.
    pub cudnn: Option<Found>,
}

/// Loads all libraries once for the process; they stay loaded, so that whoever asks for them by name gets these.
///
/// # Errors
/// A library that is not there or too old, and what to install; the headers of Burn's kernels can't be written.
pub fn load() -> Result<&'static Libraries, CudaError> {
    static LIBRARIES: OnceLock<Result<Libraries, CudaError>> = OnceLock::new();
    let found = LIBRARIES.get_or_init(search);
    match found {
        Ok(libraries) => Ok(libraries),
        Err(CudaError::Missing { what, advice }) => Err(CudaError::Missing { what, advice: advice.clone() }),
        Err(other) => Err(CudaError::Missing { what: "CUDA", advice: other.to_string() }),
    }
}

fn search() -> Result<Libraries, CudaError> {
    let folders = folders();
    let missing = |what, advice: &str| CudaError::Missing { what, advice: advice.to_owned() };
    let (driver, driver_path) = open(&["libcuda.so.1"], &[])
        .ok_or_else(|| missing("NVIDIA's driver (libcuda.so.1)", "install it and check that nvidia-smi works"))?;
    let driver_version = number(&driver, b"cuDriverGetVersion\0").unwrap_or(0);
    if driver_version < 12_000 {
        let has = format!("the driver serves CUDA {}, and 12.0 is needed", version_of(driver_version));
        return Err(CudaError::Missing { what: "a driver that is new enough", advice: has });
    }
    // newer than the driver means machine code that it may refuse: the driver's own generation first
    let major = driver_version / 1000;
    let named = |name: &str| -> Vec<String> { (12..=major).rev().map(|n| format!("{name}.{n}")).collect() };
    let (nvrtc, nvrtc_path) = open(&named("libnvrtc.so"), &folders).ok_or_else(|| {
        missing("NVRTC (libnvrtc.so)", &format!("install CUDA {major}, or `pip install nvidia-cuda-nvrtc`"))
    })?;
    let (cublaslt, cublaslt_path) = open(&named("libcublasLt.so"), &folders).ok_or_else(|| {
        missing("cuBLASLt (libcublasLt.so)", &format!("install CUDA {major}, or `pip install nvidia-cublas`"))
    })?;
    let cudnn = open(&["libcudnn.so.9"], &folders);
    let libraries = Libraries {
        driver: Found { path: driver_path, version: version_of(driver_version) },
        nvrtc: Found { path: nvrtc_path, version: nvrtc_version(&nvrtc) },
        cublaslt: Found { path: cublaslt_path, version: dotted(size(&cublaslt, b"cublasLtGetVersion\0"), 10_000) },
        cudnn: cudnn.as_ref().map(|(library, path)| Found {
            path: path.clone(),
            version: dotted(size(library, b"cudnnGetVersion\0"), 10_000),
        }),
    };
    // SAFETY: CubeCL looks for headers there and nowhere else; the program comes by here before it starts threads. The
    // libraries that are in a toolkit there were found above
    unsafe { std::env::set_var("CUDA_PATH", headers::on_disk()?) };
    for library in [driver, nvrtc, cublaslt].into_iter().chain(cudnn.map(|(library, _)| library)) {
        std::mem::forget(library);
    }
    Ok(libraries)
}

fn open<S: AsRef<str>>(names: &[S], folders: &[PathBuf]) -> Option<(Library, PathBuf)> {
    let by_name = names.iter().map(|name| PathBuf::from(name.as_ref()));
    let in_folder = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name.as_ref())));
    by_name.chain(in_folder.filter(|path| path.is_file())).find_map(|path| {
        // SAFETY: NVIDIA's libraries may be initialised at any time and from any thread
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        library.ok().map(|library| (library, path))
    })
}

/// Where else libraries may be.
fn folders() -> Vec<PathBuf> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let toolkits = toolkits.chain([PathBuf::from("/usr/local/cuda"), PathBuf::from("/opt/cuda")]);
    let mut folders: Vec<PathBuf> = toolkits.map(|toolkit| toolkit.join("lib64")).collect();
    folders.extend(pip_packages().into_iter().map(|package| package.join("lib")));
    folders
}

/// The folders in `site-packages/nvidia` of the Python environments at hand: `cu13` in packages for CUDA 13, one for each
/// library before.
fn pip_packages() -> Vec<PathBuf> {
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let home = std::env::home_dir().map(|home| home.join(".local"));
    let environments = environments.chain(python_on_path()).chain(home).chain(["/usr/local".into(), "/usr".into()]);
    let mut packages = Vec::new();
    for lib in environments.map(|prefix| prefix.join("lib")) {
        for python in entries(&lib).filter(|path| file_name(path).starts_with("python3")) {
            for site in ["site-packages", "dist-packages"] {
                packages.extend(entries(&python.join(site).join("nvidia")));
            }
        }
    }
    packages
}

/// The environment that the first `python3` on PATH belongs to; its path is not resolved, as environments link to others'.
fn python_on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let bin = std::env::split_paths(&path).find(|folder| folder.join("python3").is_file())?;
    Some(bin.parent()?.to_owned())
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.into_iter()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a function of no arguments writes into a number.
fn number(library: &Library, function: &[u8]) -> Option<i32> {
    // SAFETY: the functions that are asked for have this type
    let call = unsafe { library.get::<unsafe extern "C" fn(*mut i32) -> i32>(function) }.ok()?;
    let mut value = 0;
    // SAFETY: writes one number
    (unsafe { call(&mut value) } == 0).then_some(value)
}

fn nvrtc_version(library: &Library) -> String {
    // SAFETY: the function's type
    let call = unsafe { library.get::<unsafe extern "C" fn(*mut i32, *mut i32) -> i32>(b"nvrtcVersion\0") };
    let (mut major, mut minor) = (0, 0);
    if let Ok(call) = call {
        // SAFETY: writes two numbers
        unsafe { call(&mut major, &mut minor) };
    }
    format!("{major}.{minor}")
}

fn size(library: &Library, function: &[u8]) -> usize {
    // SAFETY: the functions that are asked for have this type
    let call = unsafe { library.get::<unsafe extern "C" fn() -> usize>(function) };
    // SAFETY: takes nothing and returns a number
    call.map_or(0, |call| unsafe { call() })
}

/// CUDA's own numbers: 12080 is 12.8.
fn version_of(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// 130100 is 13.1.0 for a `major` of 10000.
fn dotted(number: usize, major: usize) -> String {
    format!("{}.{}.{}", number / major, number % major / 100, number % 100)
}
