// What CubeCL's kernels ask of CUDA's header of this name; see ../headers.rs.
#pragma once

struct __nv_bfloat16 {
    unsigned short bits;

    __nv_bfloat16() = default;
    __device__ __nv_bfloat16(float x) {
#if __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
        unsigned all = __float_as_uint(x);
        unsigned rounded = (all + 0x7fff + (all >> 16 & 1)) >> 16;
        bits = x == x ? rounded : 0x7fff;
#endif
    }
    __device__ __nv_bfloat16(double x) : __nv_bfloat16(odd(__double2float_rz(x), x)) {}
    __device__ __nv_bfloat16(int x) : __nv_bfloat16(odd(__int2float_rz(x), x)) {}
    __device__ __nv_bfloat16(unsigned x) : __nv_bfloat16(odd(__uint2float_rz(x), x)) {}
    __device__ __nv_bfloat16(long x) : __nv_bfloat16((long long)x) {}
    __device__ __nv_bfloat16(unsigned long x) : __nv_bfloat16((unsigned long long)x) {}
    __device__ __nv_bfloat16(long long x) : __nv_bfloat16(odd(__ll2float_rz(x), x)) {}
    __device__ __nv_bfloat16(unsigned long long x) : __nv_bfloat16(odd(__ull2float_rz(x), x)) {}

    __device__ operator float() const { return __uint_as_float((unsigned)bits << 16); }

  private:
    // `x` in f32, `rounded` towards zero: a last bit that says "and a little more" keeps the rounding to bf16 the only one
    template <typename T> static __device__ float odd(float rounded, T x) {
        return T(rounded) == x ? rounded : __uint_as_float(__float_as_uint(rounded) | 1);
    }
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

// rounds once, which a sum in f32 wouldn't
__device__ inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
#if __CUDA_ARCH__ >= 800
    __nv_bfloat16 d;
    asm("fma.rn.bf16 %0, %1, %2, %3;" : "=h"(d.bits) : "h"(a.bits), "h"(b.bits), "h"(c.bits));
    return d;
#else
    return fmaf(a, b, c);
#endif
}

#define SCALAR __nv_bfloat16
#define PAIR __nv_bfloat162
#include "floats16.h"
#undef SCALAR
#undef PAIR
