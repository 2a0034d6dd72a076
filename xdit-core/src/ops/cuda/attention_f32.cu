// Attention in f32: no tensor cores, which would round to TF32. A warp a query; it serves tests and small encoders.
//
// Defined while compiling: HEAD_DIM, any.

#define INFINITY_ __int_as_float(0x7f800000)
#define PER_LANE ((HEAD_DIM + 31) / 32)

struct Strides { i64 batch, head, token; };   // in numbers
// as the other kernel's
extern "C" __global__ void __launch_bounds__(128) attention(const T* q, const T* k, const T* v, const void* bias, T* out, float* lse,
    int n_queries, int n_keys, int heads, float scale, Strides qs, Strides ks, Strides vs, Strides os, Strides bs, i64 b_key, int bias_is_f32) {
  __shared__ float queries[4][HEAD_DIM];
  const int head = blockIdx.y % heads, batch = blockIdx.y / heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = blockIdx.x * 4 + warp;
  if (row >= n_queries) return;
  q += batch * qs.batch + head * qs.head + row * qs.token;
  k += batch * ks.batch + head * ks.head; v += batch * vs.batch + head * vs.head;
  const float* b = bias ? (const float*)bias + batch * bs.batch + head * bs.head + row * bs.token : 0;
  for (int c = lane; c < HEAD_DIM; c += 32) queries[warp][c] = q[c];
  __syncwarp();
  float o[PER_LANE] = {}, max = -INFINITY_, sum = 0.f;
  for (int first = 0; first < n_keys; first += 32) {
    const int key = first + lane;
    float s = -INFINITY_;
    if (key < n_keys) {
      const T* at = k + key * ks.token;
      s = 0.f;
      for (int c = 0; c < HEAD_DIM; c++) s = fmaf(queries[warp][c], at[c], s);
      s = s * scale + (b ? b[key * b_key] : 0.f);
    }
    float high = s;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, i));
    high = fmaxf(high, max);
    const float from = high == -INFINITY_ ? 0.f : high, shrink = expf(max - from), weight = expf(s - from);
    max = high;
    sum = sum * shrink + weight;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) o[i] *= shrink;
    const int n = min(32, n_keys - first);
    for (int j = 0; j < n; j++) {
      const float w = __shfl_sync(~0u, weight, j);
      const T* at = v + (first + j) * vs.token;
#pragma unroll
      for (int i = 0; i < PER_LANE; i++) if (lane + 32 * i < HEAD_DIM) o[i] = fmaf(w, at[lane + 32 * i], o[i]);
    }
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
  const float by = sum > 0.f ? 1.f / sum : 0.f;
  out += batch * os.batch + head * os.head + row * os.token;
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) if (lane + 32 * i < HEAD_DIM) out[lane + 32 * i] = o[i] * by;
  if (lane == 0) lse[((i64)batch * heads + head) * n_queries + row] = sum > 0.f ? max + logf(sum) : -INFINITY_;
}
