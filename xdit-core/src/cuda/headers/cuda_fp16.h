// What CubeCL's kernels ask of CUDA's header of this name; see ../headers.rs.
#pragma once

struct __half {
    unsigned short bits;

    __half() = default;
    __device__ __half(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    __device__ __half(double x) { asm("cvt.rn.f16.f64 %0, %1;" : "=h"(bits) : "d"(x)); }
    // an integer that f32 doesn't hold is infinite here
    __device__ __half(int x) : __half(float(x)) {}
    __device__ __half(unsigned x) : __half(float(x)) {}
    __device__ __half(long x) : __half(float(x)) {}
    __device__ __half(unsigned long x) : __half(float(x)) {}
    __device__ __half(long long x) : __half(float(x)) {}
    __device__ __half(unsigned long long x) : __half(float(x)) {}

    __device__ operator float() const {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
};

struct alignas(4) __half2 {
    __half x, y;
};

// rounds once, which a sum in f32 wouldn't
__device__ inline __half __hfma(__half a, __half b, __half c) {
    __half d;
    asm("fma.rn.f16 %0, %1, %2, %3;" : "=h"(d.bits) : "h"(a.bits), "h"(b.bits), "h"(c.bits));
    return d;
}

#define SCALAR __half
#define PAIR __half2
#include "floats16.h"
#undef SCALAR
#undef PAIR
