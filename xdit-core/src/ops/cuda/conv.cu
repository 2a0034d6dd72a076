// Convolutions for any GPU from Ampere on: out = conv(x) + bias, plus a residual where there is one; bf16 or f16 with f32
// sums. Stride 1, sides of the kernel odd, as much padding as keeps height and width.
//
// A block computes 128 pixels of 128 channels: a product of two matrices whose summed dimension runs over the kernel's
// places and over the channels of each, 32 at a time through STAGES buffers of shared memory. The left matrix is never
// there as a whole: its rows are fetched from the pixels that the place is about, or are zeros outside of the picture.
// Eight warps, each 32 pixels by 64 channels. Every pixel is summed in this one order, wherever it is.

#define STAGES 3
#define DEPTH 32
#define LINE (DEPTH + 8)                 // shared rows are 16 bytes longer: eight rows of a matrix then lie in eight banks
#define TILE (128 * LINE)

// x, residual, out: [pictures, height, width, channels] densely packed; weight: [c_out, k, k, c_in]; channels are multiples
// of 8; residual: none if 0
extern "C" __global__ void __launch_bounds__(256) convolve(const T* x, const T* weight, const T* bias, const T* residual, T* out,
    int pictures, int height, int width, int c_in, int c_out, int k) {
  extern __shared__ __align__(16) T shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = threadIdx.x / 4, part = threadIdx.x % 4 * 8;
  const i64 pixels = (i64)pictures * height * width, first = (i64)blockIdx.x * 128;
  const int channel = blockIdx.y * 128;
  // a thread fetches 8 channels of two pixels and of two rows of the weight
  int at_x[2], at_y[2];
  i64 picture[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const i64 pixel = first + row + 64 * i;
    at_x[i] = pixel % width; at_y[i] = pixel / width % height; picture[i] = pixel / width / height;
  }
  const int blocks = (c_in + DEPTH - 1) / DEPTH, steps = k * k * blocks;
  auto fetch = [&](int step) {
    T* a = shared + step % STAGES * 2 * TILE + row * LINE + part;
    const int place = step / blocks, c = step % blocks * DEPTH + part;
    const int dx = place % k - k / 2, dy = place / k - k / 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int px = at_x[i] + dx, py = at_y[i] + dy, n = channel + row + 64 * i;
      const bool inside = picture[i] < pictures && px >= 0 && px < width && py >= 0 && py < height && c < c_in;
      copy16(a + 64 * i * LINE, inside ? x + ((picture[i] * height + py) * width + px) * c_in + c : x, inside);
      const bool there = n < c_out && c < c_in;
      copy16(a + TILE + 64 * i * LINE, there ? weight + ((i64)n * k * k + place) * c_in + c : weight, there);
    }
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) { if (i < steps) fetch(i); copies_end(); }

  float sums[2][8][4] = {};
  const int pixel_at = warp % 4 * 32, channel_at = warp / 4 * 64;
  for (int step = 0; step < steps; step++) {
    copies_wait<STAGES - 2>();
    __syncthreads();                     // all have done with the buffer that the next copies come into
    if (step + STAGES - 1 < steps) fetch(step + STAGES - 1);
    copies_end();
    const T* a_at = shared + step % STAGES * 2 * TILE + (pixel_at + lane % 16) * LINE + lane / 16 * 8;
    const T* b_at = shared + step % STAGES * 2 * TILE + TILE + (channel_at + lane / 16 * 8 + lane % 8) * LINE + lane / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < DEPTH; d += 16) {
      u32 a[2][4], b[4];
      matrices(a[0], a_at + d);
      matrices(a[1], a_at + 16 * LINE + d);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        matrices(b, b_at + 16 * j * LINE + d);
#pragma unroll
        for (int i = 0; i < 2; i++) { multiply(sums[i][2 * j], a[i], b[0], b[1]); multiply(sums[i][2 * j + 1], a[i], b[2], b[3]); }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {          // rows lane/4 and lane/4 + 8 of both matrices
    const i64 pixel = first + pixel_at + lane / 4 + 8 * i;
    if (pixel >= pixels) continue;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int c = channel + channel_at + 8 * j + lane % 4 * 2;
      if (c >= c_out) continue;
      float y[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        y[e] = sums[i / 2][j][i % 2 * 2 + e] + widen(bias[c + e]);
        if (residual) y[e] += widen(residual[pixel * c_out + c + e]);
      }
      *(u32*)(out + pixel * c_out + c) = (u32)narrow(y[0]) | ((u32)narrow(y[1]) << 16);
    }
  }
}
