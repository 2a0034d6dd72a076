// What stands between the products of attention with wide heads: softmax over rows of scores, and values turned so that a
// product can sum over keys.

#define INFINITY_ __int_as_float(0x7f800000)

// weights = softmax(scale scores), a block a row; lse: each row's log-sum-exp.
// scores, weights: [rows, keys], rows `stride` apart, a multiple of 8; what lies behind the last key is not looked at
extern "C" __global__ void __launch_bounds__(256) softmax(const float* scores, T* weights, float* lse, int keys, int stride, float scale) {
  __shared__ float shared[2][8];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  scores += (i64)blockIdx.x * stride; weights += (i64)blockIdx.x * stride;
  scale *= 1.4426950408889634f;                         // exponentials are powers of two
  float max = -INFINITY_, sum = 0.f;
  for (int i = 4 * threadIdx.x; i < keys; i += 1024) {
    const float4 v = *(const float4*)(scores + i);
    float x[4] = {v.x, v.y, v.z, v.w}, high = max;
#pragma unroll
    for (int j = 0; j < 4; j++) { x[j] = i + j < keys ? x[j] * scale : -INFINITY_; high = fmaxf(high, x[j]); }
    const float from = high == -INFINITY_ ? 0.f : high; // no inf - inf
    sum *= exp2f(max - from);
#pragma unroll
    for (int j = 0; j < 4; j++) sum += exp2f(x[j] - from);
    max = high;
  }
  float all = max;
#pragma unroll
  for (int i = 16; i > 0; i /= 2) all = fmaxf(all, __shfl_xor_sync(~0u, all, i));
  if (lane == 0) shared[0][warp] = all;
  __syncthreads();
  all = shared[0][0];
#pragma unroll
  for (int i = 1; i < 8; i++) all = fmaxf(all, shared[0][i]);
  const float from = all == -INFINITY_ ? 0.f : all;
  sum *= exp2f(max - from);
#pragma unroll
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
  if (lane == 0) shared[1][warp] = sum;
  __syncthreads();
  sum = 0.f;
#pragma unroll
  for (int i = 0; i < 8; i++) sum += shared[1][i];
  const float by = sum > 0.f ? 1.f / sum : 0.f;         // a row that sees nothing is zeros
  if (threadIdx.x == 0) lse[blockIdx.x] = sum > 0.f ? all * 0.6931471805599453f + logf(sum) : -INFINITY_;
  for (int i = 8 * threadIdx.x; i < keys; i += 2048) {
    float x[8];
    const float4 a = ((const float4*)(scores + i))[0], b = ((const float4*)(scores + i))[1];
    x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w; x[4] = b.x; x[5] = b.y; x[6] = b.z; x[7] = b.w;
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = i + j < keys ? exp2f(x[j] * scale - from) * by : 0.f;
    store8(weights + i, x);
  }
}

// y[c][i] = x[i][c]. x: [tokens, channels], rows `x_token` apart; y: rows `stride` apart. 256 threads a tile of 32 by 32.
extern "C" __global__ void __launch_bounds__(256) turn(const T* x, T* y, int tokens, int channels, i64 x_token, int stride) {
  __shared__ T tile[32][33];
  const int first = 32 * blockIdx.x, column = 32 * blockIdx.y, a = threadIdx.x % 32, b = threadIdx.x / 32;
#pragma unroll
  for (int i = b; i < 32; i += 8)
    if (first + i < tokens && column + a < channels) tile[i][a] = x[(first + i) * x_token + column + a];
  __syncthreads();
#pragma unroll
  for (int i = b; i < 32; i += 8)
    if (first + a < tokens && column + i < channels) y[(i64)(column + i) * stride + first + a] = tile[a][i];
}
