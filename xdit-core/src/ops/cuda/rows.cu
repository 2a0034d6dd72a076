// What stands between a DiT's products: norms with modulation, the norm and the turn of queries and keys, gated residuals,
// activations. All of it waits for memory, so each reads its operands once, 16 bytes a thread, and writes once. Sums are
// f32 and are taken in an order that depends on the row's length alone: a row has the same bits among any others.


// What no kernel that is asked for depends on.
#ifndef VECTORS
#define VECTORS 1
#endif
#ifndef GROUP
#define GROUP 8
#endif

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

// What is widened is forgotten here: kept until it is used again it would take twice the registers.
__device__ __forceinline__ void stay_packed(Eight (&packed)[VECTORS]) {
#ifndef F32
#pragma unroll
  for (int i = 0; i < VECTORS; i++) asm volatile("" : "+r"(packed[i].x), "+r"(packed[i].y), "+r"(packed[i].z), "+r"(packed[i].w));
#endif
}

// --------------------------------------------------------------------------------------------- rows in e4m3
#ifdef FP8
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
  return x;
}
// What brings a row's largest number to e4m3's largest; the scale undoes it. A row of zeros stays one.
__device__ __forceinline__ float e4m3_factor(float largest, float* scale, bool writes) {
  largest = fmaxf(largest, 1e-30f);
  if (writes) *scale = largest / 448.f;
  return 448.f / largest;
}
__device__ __forceinline__ u32 four_e4m3(const float* x, float by) {
  u16 low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(x[1] * by), "f"(x[0] * by));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(x[3] * by), "f"(x[2] * by));
  return (u32)low | ((u32)high << 16);
}
__device__ __forceinline__ void store8_e4m3(u8* to, const float (&x)[8], float by) {
  *(uint2*)to = make_uint2(four_e4m3(x, by), four_e4m3(x + 4, by));
}
// Rows of [batch, tokens, d_a], those of [batch, tokens, d_b] beside them, by strides, to densely packed ones; a block a row,
// VECTORS of 8 numbers a thread.
extern "C" __global__ void __launch_bounds__(1024) quantise_rows(const T* a, const T* b, u8* y, float* scales, int tokens, int d_a,
    int d_b, i64 a_batch, i64 a_token, i64 b_batch, i64 b_token) {
  __shared__ float shared[32];
  const int row = blockIdx.x, batch = row / tokens, token = row % tokens, n = (d_a + d_b) / 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
  a += batch * a_batch + token * a_token;
  b += batch * b_batch + token * b_token - d_a;
  y += (i64)row * 8 * n;
  float v[VECTORS][8], largest = 0.f;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at >= n) continue;
    load8((8 * at < d_a ? a : b) + 8 * at, v[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(v[i][j]));
  }
  largest = warp_max(largest);
  if (lane == 0) shared[warp] = largest;
  __syncthreads();
  largest = warp_max(lane < n_warps ? shared[lane] : 0.f);
  const float by = e4m3_factor(largest, scales + row, threadIdx.x == 0);
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < n) store8_e4m3(y + 8 * at, v[i], by);
  }
}
typedef u8 Normed;
#else
typedef T Normed;
#endif

// y = normalised(x) * (one + scale) + shift, a warp a row of d numbers: no thread waits for another warp's, and so many rows
// are on their way at once that memory is never idle.
// RMS: divided by the root of the mean square, without subtracting the mean.
// x: rows of [batch, tokens, d]; scale, shift: a row for each batch entry, or the same for all (stride 0), or none (0).
// With -DFP8 the rounded result goes into e4m3, and `scales` gets each row's.
extern "C" __global__ void __launch_bounds__(128, VECTORS <= 8 ? 6 : VECTORS <= 12 ? 4 : 3) row_norm(const T* x, const T* scale, const T* shift,
    Normed* y, float* scales, int rows, int tokens, int d, i64 x_batch, i64 x_token, i64 scale_batch, i64 shift_batch, float one,
    float eps, int rms) {
  const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, batch = row / tokens;
  if (row >= rows) return;
  x += batch * x_batch + (row % tokens) * x_token;
  scale += batch * scale_batch; shift += batch * shift_batch; y += (i64)row * d;
  const int n = d / 8;                                  // vectors of a row; VECTORS of them a thread
  Eight packed[VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    packed[i] = Eight();
    if (lane + 32 * i < n) packed[i] = *(const Eight*)(x + 8 * (lane + 32 * i));
  }
  float mean = 0.f;
  if (!rms) {
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
      float v[8];
      widen8(packed[i], v);
#pragma unroll
      for (int j = 0; j < 8; j++) mean += v[j];
    }
    mean = warp_sum(mean) / d;
  }
  stay_packed(packed);
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    float v[8];
    widen8(packed[i], v);
    if (lane + 32 * i >= n) continue;
#pragma unroll
    for (int j = 0; j < 8; j++) squares += (v[j] - mean) * (v[j] - mean);
  }
  const float inverse = rsqrtf(warp_sum(squares) / d + eps);
  float largest = 0.f;                                  // of FP8
  stay_packed(packed);
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int at = lane + 32 * i;
    if (at >= n) continue;
    float v[8], a[8], b[8];
    widen8(packed[i], v);
    if (scale) load8(scale + 8 * at, a);
    if (shift) load8(shift + 8 * at, b);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = (v[j] - mean) * inverse * (scale ? one + a[j] : 1.f) + (shift ? b[j] : 0.f);
#ifdef FP8
#pragma unroll
    for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(v[j]));
    packed[i] = pack8(v);
#else
    store8(y + 8 * at, v);
#endif
  }
#ifdef FP8
  const float by = e4m3_factor(widen(narrow(warp_max(largest))), scales + row, lane == 0);
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    float v[8];
    widen8(packed[i], v);
    if (lane + 32 * i < n) store8_e4m3(y + 8 * (lane + 32 * i), v, by);
  }
#endif
}

// Queries and keys, or either: each head normalised, then its pairs of channels turned. A block a token, so that its angles
// are read once; GROUP threads a head, 8 channels a thread.
// x: [batch, heads, tokens, d] by strides; y: the same with heads side by side, perhaps x itself; cos, sin: [tokens, d / 2],
// or none (0)
struct Heads { const T *x, *weight, *bias; T* y; };
extern "C" __global__ void __launch_bounds__(256, 4) head_norm_rope(Heads first, Heads second, int sides, const float* cos,
    const float* sin, int heads, int d, i64 x_batch, i64 x_head, i64 x_token, i64 y_batch, i64 y_token, float eps, int kind) {
  const i64 token = blockIdx.x, batch = blockIdx.y;
  const int part = threadIdx.x % GROUP;
  const bool fits = 8 * part < d;
  float cs[4], sn[4];
  if (cos && fits) {
    const float4 c = *(const float4*)(cos + token * (d / 2) + 4 * part), s = *(const float4*)(sin + token * (d / 2) + 4 * part);
    cs[0] = c.x; cs[1] = c.y; cs[2] = c.z; cs[3] = c.w;
    sn[0] = s.x; sn[1] = s.y; sn[2] = s.z; sn[3] = s.w;
  }
  auto group_sum = [&](float s) {
#pragma unroll
    for (int lane = GROUP / 2; lane > 0; lane /= 2) s += __shfl_xor_sync(~0u, s, lane);
    return s;
  };
  // whole warps take part to the end: sums are over lanes
  for (int begin = 0; begin < heads; begin += blockDim.x / GROUP) {
    const int head = begin + threadIdx.x / GROUP;
    const bool mine = fits && head < heads;
    float v[2][8];
#pragma unroll
    for (int side = 0; side < 2; side++) {
#pragma unroll
      for (int j = 0; j < 8; j++) v[side][j] = 0.f;
      const T* x = side ? second.x : first.x;
      if (mine && side < sides) load8(x + batch * x_batch + head * x_head + token * x_token + 8 * part, v[side]);
    }
#pragma unroll
    for (int side = 0; side < 2; side++) {
      if (side >= sides) break;
      const Heads& to = side ? second : first;
      float(&x)[8] = v[side];
      if (kind != 0) {                                   // 1: RMS, 2: layer norm
        float mean = 0.f;
        if (kind == 2) {
#pragma unroll
          for (int j = 0; j < 8; j++) mean += x[j];
          mean = group_sum(mean) / d;
        }
        float squares = 0.f;
#pragma unroll
        for (int j = 0; j < 8; j++) squares += mine ? (x[j] - mean) * (x[j] - mean) : 0.f;
        const float inverse = rsqrtf(group_sum(squares) / d + eps);
        if (mine) {
          float w[8], b[8];
          load8(to.weight + 8 * part, w);
          if (to.bias) load8(to.bias + 8 * part, b);
#pragma unroll
          for (int j = 0; j < 8; j++) x[j] = (x[j] - mean) * inverse * w[j] + (to.bias ? b[j] : 0.f);
        }
      }
      if (!mine) continue;
      if (cos) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float even = x[2 * j], odd = x[2 * j + 1];
          x[2 * j] = even * cs[j] - odd * sn[j];
          x[2 * j + 1] = odd * cs[j] + even * sn[j];
        }
      }
      store8(to.y + batch * y_batch + token * y_token + head * d + 8 * part, x);
    }
  }
}

// out = x + gate y. x: [batch, tokens, d] by strides; y and out: densely packed; gate: a row for each batch entry
extern "C" __global__ void __launch_bounds__(256) gated_residual(const T* x, const T* gate, const T* y, T* out, i64 vectors,
    int tokens, int d, i64 x_batch, i64 x_token, i64 y_batch, i64 y_token, i64 gate_batch) {
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= vectors) return;
  const int n = d / 8, at = 8 * (int)(i % n);
  const i64 row = i / n, batch = row / tokens, token = row % tokens;
  float a[8], b[8], g[8];
  load8(x + batch * x_batch + token * x_token + at, a);
  load8(y + batch * y_batch + token * y_token + at, b);
  load8(gate + batch * gate_batch + at, g);
#pragma unroll
  for (int j = 0; j < 8; j++) a[j] += g[j] * b[j];
  store8(out + 8 * i, a);
}

// --------------------------------------------------------------------------------------------- activations
__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }
// which: the order of `Activation`
__device__ __forceinline__ float act(float x, int which) {
  switch (which) {
    case 1: return 0.5f * x * (1.f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case 2: return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
    case 3: return x * sigmoid(1.702f * x);
    case 4: return x * sigmoid(x);
    default: return x;
  }
}
// y = act(x), or y = value * act(x) where there is a value; all densely packed
extern "C" __global__ void __launch_bounds__(256) activate(const T* x, const T* value, T* y, i64 n, int which) {
  const i64 i = 8 * ((i64)blockIdx.x * 256 + threadIdx.x);
  if (i + 8 <= n) {
    float a[8], b[8];
    load8(x + i, a);
    if (value) load8(value + i, b);
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] = act(a[j], which) * (value ? b[j] : 1.f);
    store8(y + i, a);
  } else {
    for (i64 j = i; j < n; j++) y[j] = narrow(act(widen(x[j]), which) * (value ? widen(value[j]) : 1.f));
  }
}

// Attention over two sets of keys from attention over either: weights by the log-sum-exp. A warp a row of d numbers.
// out_a, out_b: [batch, heads, rows, d] by strides, in A and B; out: f32, memory [batch, rows, heads, d]
extern "C" __global__ void __launch_bounds__(256) merge_attended(const void* out_a, const void* out_b, const float* lse_a, const float* lse_b,
    float* out, float* lse, i64 n, int heads, int rows, int d, i64 a_batch, i64 a_head, i64 a_row, i64 b_batch, i64 b_head,
    i64 b_row, int a_is_f32, int b_is_f32) {
  const i64 i = (i64)blockIdx.x * 8 + threadIdx.x / 32;    // heads innermost
  if (i >= n) return;
  const int lane = threadIdx.x % 32, head = i % heads, row = i / heads % rows;
  const i64 batch = i / heads / rows, at = (batch * heads + head) * rows + row;
  const float a = lse_a[at], b = lse_b[at], lowest = -1.7e38f;
  const float high = fmaxf(fmaxf(a, b), lowest);           // no inf - inf where no key is seen
  const float wa = expf(a - high), wb = expf(b - high), sum = wa + wb, by = 1.f / fmaxf(sum, 1.1754944e-38f);
  if (lane == 0) lse[at] = high + logf(sum);
  const i64 pa = batch * a_batch + head * a_head + row * a_row, pb = batch * b_batch + head * b_head + row * b_row;
  for (int j = lane; j < d; j += 32) {
    const float x = a_is_f32 ? ((const float*)out_a)[pa + j] : widen(((const T*)out_a)[pa + j]);
    const float y = b_is_f32 ? ((const float*)out_b)[pb + j] : widen(((const T*)out_b)[pb + j]);
    out[i * d + j] = (x * wa + y * wb) * by;
  }
}
