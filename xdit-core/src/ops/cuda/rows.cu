// What stands between a DiT's products: norms with modulation, the norm and the turn of queries and keys, gated residuals,
// activations. All of it waits for memory, so each reads its operands once, 16 bytes a thread, and writes once. Sums are
// f32 and are taken in an order that depends on the row's length alone: a row has the same bits among any others.

// --------------------------------------------------------------------------------------------- sums over a block
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}
// Every thread gets the sum over all threads. `shared` holds one number a warp and is free again afterwards.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_sum(lane < n_warps ? shared[lane] : 0.f);
  __syncthreads();
  return x;
}

// y = normalised(x) * (one + scale) + shift, a block a row of d numbers.
// RMS: divided by the root of the mean square, without subtracting the mean.
// x: rows of [batch, tokens, d]; scale, shift: a row for each batch entry, or the same for all (stride 0), or none (0).
extern "C" __global__ void __launch_bounds__(1024) row_norm(const T* x, const T* scale, const T* shift, T* y, int tokens, int d,
    i64 x_batch, i64 x_token, i64 scale_batch, i64 shift_batch, float one, float eps, int rms) {
  __shared__ float shared[32];
  const int row = blockIdx.x, batch = row / tokens;
  x += batch * x_batch + (row % tokens) * x_token;
  scale += batch * scale_batch; shift += batch * shift_batch; y += (i64)row * d;
  const int n = d / 8;                                  // vectors of a row; VECTORS of them a thread
  float v[VECTORS][8];
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < n) load8(x + 8 * at, v[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) { if (at >= n) v[i][j] = 0.f; sum += v[i][j]; }
  }
  const float mean = rms ? 0.f : block_sum(sum, shared) / d;
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < VECTORS; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float c = threadIdx.x + i * blockDim.x < n ? v[i][j] - mean : 0.f;
      squares += c * c;
    }
  const float inverse = rsqrtf(block_sum(squares, shared) / d + eps);
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at >= n) continue;
    float a[8], b[8];
    if (scale) load8(scale + 8 * at, a);
    if (shift) load8(shift + 8 * at, b);
#pragma unroll
    for (int j = 0; j < 8; j++)
      v[i][j] = (v[i][j] - mean) * inverse * (scale ? one + a[j] : 1.f) + (shift ? b[j] : 0.f);
    store8(y + 8 * at, v[i]);
  }
}

// Queries or keys: each head normalised, then its pairs of channels turned. GROUP threads a head, 8 channels a thread.
// x: [batch, heads, tokens, d] by strides; y: the same with heads side by side, perhaps x itself; cos, sin: [tokens, d / 2],
// or none (0)
extern "C" __global__ void __launch_bounds__(256) head_norm_rope(const T* x, const T* weight, const T* bias, const float* cos,
    const float* sin, T* y, i64 rows, int heads, int tokens, int d, i64 x_batch, i64 x_head, i64 x_token, i64 y_batch, i64 y_token,
    float eps, int kind) {
  const i64 row = (i64)blockIdx.x * (256 / GROUP) + threadIdx.x / GROUP;   // heads innermost, as in memory
  const int part = threadIdx.x % GROUP;
  const bool there = row < rows, mine = there && 8 * part < d;
  const int head = row % heads, token = row / heads % tokens;
  const i64 batch = row / heads / tokens;
  float v[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
  if (mine) load8(x + batch * x_batch + head * x_head + token * x_token + 8 * part, v);
  auto group_sum = [&](float s) {
#pragma unroll
    for (int lane = GROUP / 2; lane > 0; lane /= 2) s += __shfl_xor_sync(~0u, s, lane);
    return s;
  };
  if (kind != 0) {                                       // 1: RMS, 2: layer norm
    float mean = 0.f;
    if (kind == 2) {
#pragma unroll
      for (int j = 0; j < 8; j++) mean += v[j];
      mean = group_sum(mean) / d;
    }
    float squares = 0.f;
#pragma unroll
    for (int j = 0; j < 8; j++) squares += mine ? (v[j] - mean) * (v[j] - mean) : 0.f;
    const float inverse = rsqrtf(group_sum(squares) / d + eps);
    if (mine) {
      float w[8], b[8];
      load8(weight + 8 * part, w);
      if (bias) load8(bias + 8 * part, b);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = (v[j] - mean) * inverse * w[j] + (bias ? b[j] : 0.f);
    }
  }
  if (!mine) return;
  if (cos) {
    const float4 c = *(const float4*)(cos + (i64)token * (d / 2) + 4 * part), s = *(const float4*)(sin + (i64)token * (d / 2) + 4 * part);
    const float cs[4] = {c.x, c.y, c.z, c.w}, sn[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float even = v[2 * j], odd = v[2 * j + 1];
      v[2 * j] = even * cs[j] - odd * sn[j];
      v[2 * j + 1] = odd * cs[j] + even * sn[j];
    }
  }
  store8(y + batch * y_batch + token * y_token + head * d + 8 * part, v);
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
