// Convolutions in f32, as `conv.cu` computes them, without tensor cores, which would round to TF32.
//
// A block computes 64 pixels of 64 channels, 16 summands at a time; a thread four of each.

#define DEPTH 16

// as the other kernel's
extern "C" __global__ void __launch_bounds__(256) convolve(const T* x, const T* weight, const T* bias, const T* residual, T* out,
    int pictures, int height, int width, int c_in, int c_out, int k) {
  __shared__ float a[DEPTH][64 + 4], b[DEPTH][64 + 4];
  const i64 pixels = (i64)pictures * height * width, first = (i64)blockIdx.x * 64;
  const int channel = blockIdx.y * 64, row = threadIdx.x / 4, part = threadIdx.x % 4 * 4;
  const i64 pixel = first + row, picture = pixel / width / height;
  const int at_x = pixel % width, at_y = pixel / width % height, n = channel + row;
  const int blocks = (c_in + DEPTH - 1) / DEPTH, mine_x = threadIdx.x % 16 * 4, mine_c = threadIdx.x / 16 * 4;
  float sums[4][4] = {};
  for (int step = 0; step < k * k * blocks; step++) {
    const int place = step / blocks, c = step % blocks * DEPTH + part;
    const int px = at_x + place % k - k / 2, py = at_y + place / k - k / 2;
    const bool inside = picture < pictures && px >= 0 && px < width && py >= 0 && py < height && c < c_in;
    const float4 zero = {0.f, 0.f, 0.f, 0.f};
    const float4 u = inside ? *(const float4*)(x + ((picture * height + py) * width + px) * c_in + c) : zero;
    const float4 v = n < c_out && c < c_in ? *(const float4*)(weight + ((i64)n * k * k + place) * c_in + c) : zero;
    __syncthreads();
    a[part][row] = u.x; a[part + 1][row] = u.y; a[part + 2][row] = u.z; a[part + 3][row] = u.w;
    b[part][row] = v.x; b[part + 1][row] = v.y; b[part + 2][row] = v.z; b[part + 3][row] = v.w;
    __syncthreads();
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      const float4 p = *(const float4*)&a[d][mine_x], q = *(const float4*)&b[d][mine_c];
      const float ps[4] = {p.x, p.y, p.z, p.w}, qs[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = fmaf(ps[i], qs[j], sums[i][j]);
    }
  }
  if (channel + mine_c >= c_out) return;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const i64 to = first + mine_x + i;
    if (to >= pixels) continue;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const i64 at = to * c_out + channel + mine_c + j;
      out[at] = sums[i][j] + bias[channel + mine_c + j] + (residual ? residual[at] : 0.f);
    }
  }
}
