// Numbers as a file has them in the model's precision. -DFROM_F32, -DFROM_F16 or -DFROM_BF16 says what they were.
#if defined(FROM_F32)
typedef float From;
__device__ __forceinline__ float read(From x) { return x; }
#elif defined(FROM_F16)
typedef u16 From;
__device__ __forceinline__ float read(From x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
#elif defined(FROM_BF16)
typedef u16 From;
__device__ __forceinline__ float read(From x) { return __uint_as_float((u32)x << 16); }
#endif

extern "C" __global__ void __launch_bounds__(256) convert(const From* from, T* to, i64 n) {
  for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < n; i += (i64)gridDim.x * 256) to[i] = narrow(read(from[i]));
}
