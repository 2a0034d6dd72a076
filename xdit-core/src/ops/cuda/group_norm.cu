// Group norms of feature maps in memory with the channels innermost, with SiLU or without: x is read twice and y written
// once. Sums are f32; which numbers are summed in which order follows from the shape alone.
//
// A thread holds 8 channels and walks over pixels, `256 / (channels / 8)` of them at a time in a block; where that leaves
// threads over they have nothing to sum. Means and
// sums of squared distances from them are joined by Chan's formula, so that channels far from zero keep their variance.

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

// Every `step`-th pixel from `first` on before `end`, in order; four are on their way at a time.
template <typename F> __device__ __forceinline__ void each_pixel(const T* x, int channels, int first, int end, int step, F use) {
  int p = first;
  for (; p + 3 * step < end; p += 4 * step) {
    float v[4][8];
#pragma unroll
    for (int i = 0; i < 4; i++) load8(x + (i64)(p + i * step) * channels, v[i]);
#pragma unroll
    for (int i = 0; i < 4; i++) use(p + i * step, v[i]);
  }
  for (; p < end; p += step) {
    float v[8];
    load8(x + (i64)p * channels, v);
    use(p, v);
  }
}

// Of each group of each chunk of pixels: mean, and sum of squared distances from it.
// x: [pictures, pixels, channels]; parts: [pictures, groups, chunks]
extern "C" __global__ void __launch_bounds__(256) moments(const T* __restrict__ x, float2* __restrict__ parts, int pixels,
    int channels, int groups, int per_chunk) {
  extern __shared__ float shared[];                     // means, then squares: [lines, channels]
  const int vectors = channels / 8, lines = 256 / vectors, line = threadIdx.x / vectors;
  const int column = 8 * (threadIdx.x % vectors), first = blockIdx.x * per_chunk, end = min(first + per_chunk, pixels);
  x += (i64)blockIdx.y * pixels * channels + column;
  auto pixels_of = [&](int line) { return max(0, (end - first - line + lines - 1) / lines); };
  float pivot[8] = {}, sum[8] = {}, squares[8] = {};
  // distances from the thread's first pixel: small beside it where the channel is far from zero
  const bool idle = line >= lines;
  if (!idle && first + line < end) load8(x + (i64)(first + line) * channels, pivot);
  if (!idle)
    each_pixel(x, channels, first + line + lines, end, lines, [&](int, const float (&v)[8]) {
#pragma unroll
      for (int j = 0; j < 8; j++) { const float d = v[j] - pivot[j]; sum[j] += d; squares[j] = fmaf(d, d, squares[j]); }
    });
  const float mine = max(1, pixels_of(line));
  float* means = shared + line * channels + column;
  float* distances = means + lines * channels;
#pragma unroll
  for (int j = 0; j < 8 && !idle; j++) {
    means[j] = pivot[j] + sum[j] / mine;
    distances[j] = squares[j] - sum[j] * (sum[j] / mine);
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, of_group = channels / groups;
  for (int group = warp; group < groups; group += 8) {
    const float n = (float)(end - first) * of_group;
    auto at = [&](int i) { return (i / of_group) * channels + group * of_group + i % of_group; };
    float mean = 0.f, distance = 0.f;
    for (int i = lane; i < lines * of_group; i += 32) mean += pixels_of(i / of_group) * shared[at(i)];
    mean = warp_sum(mean) / n;
    for (int i = lane; i < lines * of_group; i += 32) {
      const float d = shared[at(i)] - mean;
      distance += shared[lines * channels + at(i)] + pixels_of(i / of_group) * d * d;
    }
    distance = warp_sum(distance);
    if (lane == 0) parts[((i64)blockIdx.y * groups + group) * gridDim.x + blockIdx.x] = make_float2(mean, distance);
  }
}

// A group's mean and variance from those of its chunks, by one warp.
// parts: [chunks], means and sums of squared distances; a chunk has `per_chunk` pixels, the last one what is left
__device__ __forceinline__ float2 joined(const float2* part, int pixels, int of_group, int per_chunk, int chunks) {
  const int lane = threadIdx.x % 32;
  auto weight_of = [&](int chunk) { return (float)min(per_chunk, pixels - chunk * per_chunk) / per_chunk; };
  const float n = (float)pixels / per_chunk;            // counted in whole chunks
  float mean = 0.f, distance = 0.f;
  for (int i = lane; i < chunks; i += 32) mean += weight_of(i) * part[i].x;
  mean = warp_sum(mean) / n;
  for (int i = lane; i < chunks; i += 32) {
    const float d = part[i].x - mean;
    distance += part[i].y / ((float)per_chunk * of_group) + weight_of(i) * d * d;
  }
  distance = warp_sum(distance);
  return make_float2(mean, distance / n);
}

// parts: of `moments`; groups: [pictures, groups], mean and variance of each; a block per group
extern "C" __global__ void __launch_bounds__(32) join(const float2* __restrict__ parts, float2* __restrict__ groups, int pixels,
    int of_group, int per_chunk, int chunks) {
  const i64 group = (i64)blockIdx.y * gridDim.x + blockIdx.x;
  const float2 moments = joined(parts + group * chunks, pixels, of_group, per_chunk, chunks);
  if (threadIdx.x == 0) groups[group] = moments;
}

// y = normalised(x) * weight + bias, then SiLU.
// parts: of `moments`, with its `per_chunk`, or with no `chunks` means and variances, [pictures, groups]; weight, bias:
// [channels]; a block takes `per_block` pixels
extern "C" __global__ void __launch_bounds__(256) normalise(const T* __restrict__ x, const float2* __restrict__ parts,
    const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, int pixels, int channels, int groups,
    int per_chunk, int chunks, int per_block, float eps, int silu) {
  extern __shared__ float2 of_groups[];                 // mean, inverse of the deviation
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, of_group = channels / groups;
  for (int group = warp; group < groups; group += 8) {
    const i64 at = (i64)blockIdx.y * groups + group;
    const float2 moments = chunks ? joined(parts + at * chunks, pixels, of_group, per_chunk, chunks) : parts[at];
    if (lane == 0) of_groups[group] = make_float2(moments.x, rsqrtf(moments.y + eps));
  }
  __syncthreads();
  const int vectors = channels / 8, lines = 256 / vectors, line = threadIdx.x / vectors;
  const int column = 8 * (threadIdx.x % vectors);
  if (line >= lines) return;
  // the last pixels first: they are those that `moments` has left in the cache
  const int first = (gridDim.x - 1 - blockIdx.x) * per_block, end = min(first + per_block, pixels);
  float mean[8], scale[8], shift[8];
  load8(weight + column, scale);
  load8(bias + column, shift);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const float2 group = of_groups[(column + j) / of_group];
    mean[j] = group.x;
    scale[j] *= group.y;
  }
  x += (i64)blockIdx.y * pixels * channels + column; y += (i64)blockIdx.y * pixels * channels + column;
  each_pixel(x, channels, first + line, end, lines, [&](int p, float (&v)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      v[j] = fmaf(v[j] - mean[j], scale[j], shift[j]);
      if (silu) v[j] = __fdividef(v[j], 1.f + __expf(-v[j]));
    }
    store8(y + (i64)p * channels, v);
  });
}
