// Feature maps between their orders in memory. All of it waits for memory, and none of it is large.

// y[n][i][j][c] = x[n, c, i, j], zeros past the last picture and the last channel.
// x: by strides; y: [pictures, height, width, WIDE] densely packed, WIDE a multiple of 8. Also orders a convolution's
// weights, whose outputs are its pictures.
extern "C" __global__ void __launch_bounds__(256) arrange(const T* x, T* y, int pictures, int channels, int height, int width,
    int all_pictures, int wide, i64 x_picture, i64 x_channel, i64 x_row, i64 x_column) {
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x, pixels = (i64)all_pictures * height * width;
  if (i >= pixels * (wide / 8)) return;
  const i64 pixel = i % pixels;                         // neighbours are threads' neighbours: so they lie in most maps
  const int first = 8 * (int)(i / pixels);
  const int column = pixel % width, row = pixel / width % height, picture = pixel / width / height;
  float v[8];
#pragma unroll
  for (int j = 0; j < 8; j++)
    v[j] = picture < pictures && first + j < channels
      ? widen(x[picture * x_picture + (first + j) * x_channel + row * x_row + column * x_column]) : 0.f;
  store8(y + pixel * wide + first, v);
}

// Each pixel four times. x: [rows, width, channels], y: [2 rows, 2 width, channels], both densely packed.
extern "C" __global__ void __launch_bounds__(256) upsample(const T* x, T* y, i64 vectors, int width, int channels) {
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= vectors) return;
  const int n = channels / 8;
  const i64 pixel = i / n, row = pixel / width, column = pixel % width;
  float v[8];
  load8(x + 8 * i, v);
  T* to = y + ((2 * row) * (2 * width) + 2 * column) * channels + 8 * (i % n);
  store8(to, v);
  store8(to + channels, v);
  store8(to + (i64)2 * width * channels, v);
  store8(to + (i64)(2 * width + 1) * channels, v);
}
