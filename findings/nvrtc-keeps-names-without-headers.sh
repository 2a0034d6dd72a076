#!/usr/bin/env bash
# A kernel called `norm` does not compile, though nothing is included (NVRTC 13.0.88)
#
# Expected: source that includes no header has the names that it declares, and no others; `extern "C"` kernels may be called as
#   one likes. nvcc's math functions come with its headers, and NVRTC was given none.
# Seen: NVRTC declares CUDA's whole math library before the first line. A kernel that has the name of one of its functions is
#   an overload of it, and two overloads can't both be `extern "C"`: "more than one instance of overloaded function "norm" has
#   "C" linkage". So are `rsqrt`, `erf`, `j0` or `normcdf`. Without `extern "C"`, or in a namespace, the same kernel compiles.
#   `INFINITY` and `NAN`, which are macros of a header, are not there.
# So: kernels that are found by plain names need names that no math library has; a clash shows when they are compiled, which is
#   on the user's machine.
# xdit: its kernels are called `row_norm`, `head_norm_rope` and so on; the tests on GPUs compile them all.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv} # optional: an absolute path of a venv to keep between runs
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check nvidia-cuda-nvrtc==13.0.88
cd "$work"
"$venv/bin/python" - <<'PY'
import ctypes
import glob
import sys
import sysconfig

def expect(ok, what):
    print(("as described: " if ok else "CHANGED: ") + what)
    if not ok:
        sys.exit(1)


lib = sysconfig.get_paths()["purelib"] + "/nvidia/cu13/lib/"
ctypes.CDLL(glob.glob(lib + "libnvrtc-builtins.so.13.0")[0], mode=ctypes.RTLD_GLOBAL)
nvrtc = ctypes.CDLL(lib + "libnvrtc.so.13")


def compile_source(source):
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 1)(b"--gpu-architecture=sm_80")
    status = nvrtc.nvrtcCompileProgram(program, 1, options)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return status == 0, log.value.decode()


kernel = 'extern "C" __global__ void %s(float* x) { *x = 1.f; }'
for name in ("norm", "rsqrt", "erf", "j0", "normcdf"):
    ok, log = compile_source(kernel % name)
    print(name, "compiles" if ok else log.strip().splitlines()[0])
    expect(not ok and "overloaded" in log, f"a kernel called {name} does not compile")
expect(compile_source(kernel % "row_norm")[0], "one called row_norm does")
expect(compile_source("__global__ void norm(float* x) { *x = 1.f; }")[0], "without extern C one called norm does")
expect(not compile_source(kernel.replace("1.f", "INFINITY") % "a")[0], "INFINITY is not there")
PY
