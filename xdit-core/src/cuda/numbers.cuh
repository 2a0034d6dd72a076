// What all kernels begin with: numbers without CUDA's headers. -DF32, -DF16 or -DBF16 says what T is.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#if defined(F32)
typedef float T;
__device__ __forceinline__ float widen(T x) { return x; }
__device__ __forceinline__ T narrow(float x) { return x; }
#elif defined(F16)
typedef u16 T;
__device__ __forceinline__ float widen(T x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
__device__ __forceinline__ T narrow(float x) { T y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#elif defined(BF16)
typedef u16 T;
__device__ __forceinline__ float widen(T x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ T narrow(float x) { T y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#endif

// Eight numbers at once: 16 bytes of half precision, the widest that a thread loads. Packed, as they lie in memory, they take
// half the registers of what they are widened to.
#if defined(F32)
struct Eight { float4 a, b; };
#else
typedef uint4 Eight;
#endif
__device__ __forceinline__ void widen8(const Eight& from, float (&x)[8]) {
#if defined(F32)
  const float4 a = from.a, b = from.b;
  x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w; x[4] = b.x; x[5] = b.y; x[6] = b.z; x[7] = b.w;
#else
  const u32 words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; i++) { x[2 * i] = widen((u16)words[i]); x[2 * i + 1] = widen((u16)(words[i] >> 16)); }
#endif
}
__device__ __forceinline__ void load8(const T* from, float (&x)[8]) { widen8(*(const Eight*)from, x); }
__device__ __forceinline__ Eight pack8(const float (&x)[8]) {
  Eight to;
#if defined(F32)
  to.a.x = x[0]; to.a.y = x[1]; to.a.z = x[2]; to.a.w = x[3]; to.b.x = x[4]; to.b.y = x[5]; to.b.z = x[6]; to.b.w = x[7];
#else
  u32 words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) words[i] = (u32)narrow(x[2 * i]) | ((u32)narrow(x[2 * i + 1]) << 16);
  to.x = words[0]; to.y = words[1]; to.z = words[2]; to.w = words[3];
#endif
  return to;
}
__device__ __forceinline__ void store8(T* to, const float (&x)[8]) { *(Eight*)to = pack8(x); }
