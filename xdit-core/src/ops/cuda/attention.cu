// Attention for any GPU from Ampere on, with a bias on the scores: out = softmax(scale q k^T + bias) v and each row's
// log-sum-exp, bf16 or f16 with f32 sums. On Hopper it serves what the other kernel does not: masked keys, short texts.
//
// Four warps a block, 16 queries each, of one head. Keys come in tiles of KEYS through two buffers of shared memory, copied
// while the tile before is computed with. A row's sum runs from its first key to its last one, whatever else is computed.
//
// Defined while compiling: HEAD_DIM (multiple of 8), KEYS (multiple of 16).

#define WIDTH ((HEAD_DIM + 15) / 16 * 16)
#define LINE (WIDTH + 8)                 // shared rows are 16 bytes longer: eight rows of a matrix then lie in eight banks
#define TILE (KEYS * LINE)
#define QUERIES 64

#define INFINITY_ __int_as_float(0x7f800000)
__device__ __forceinline__ void matrices_turned(u32 (&x)[4], const T* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address(at)));
}
__device__ __forceinline__ u32 pair(float low, float high) { return (u32)narrow(low) | ((u32)narrow(high) << 16); }

// Copies rows from `first` on, zeros past the last one and past HEAD_DIM.
__device__ __forceinline__ void fetch(T* to, const T* from, i64 stride, int first, int n_rows, int end) {
  const int chunks = WIDTH / 8;
  for (int i = threadIdx.x; i < n_rows * chunks; i += 128) {
    const int row = i / chunks, column = i % chunks * 8;
    const bool there = first + row < end && column < HEAD_DIM;
    copy16(to + row * LINE + column, there ? from + (first + row) * stride + column : from, there);
  }
}

struct Strides { i64 batch, head, token; };   // in numbers
// bias: [batch, heads, n_queries, n_keys] by strides, some of them 0; f32, or T
extern "C" __global__ void __launch_bounds__(128) attention(const T* q, const T* k, const T* v, const void* bias, T* out, float* lse,
    int n_queries, int n_keys, int heads, float scale, Strides qs, Strides ks, Strides vs, Strides os, Strides bs, i64 b_key, int bias_is_f32) {
  extern __shared__ __align__(16) T shared[];
  T* q_at = shared; T* k_at = q_at + QUERIES * LINE; T* v_at = k_at + 2 * TILE;
  const int head = blockIdx.y % heads, batch = blockIdx.y / heads, first = blockIdx.x * QUERIES;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  q += batch * qs.batch + head * qs.head; k += batch * ks.batch + head * ks.head; v += batch * vs.batch + head * vs.head;
  out += batch * os.batch + head * os.head;
  const i64 bias_at = batch * bs.batch + head * bs.head;
  const int n_tiles = (n_keys + KEYS - 1) / KEYS;
  fetch(q_at, q, qs.token, first, QUERIES, n_queries);
  if (n_tiles > 0) { fetch(k_at, k, ks.token, 0, KEYS, n_keys); fetch(v_at, v, vs.token, 0, KEYS, n_keys); }
  copies_end();

  float o[WIDTH / 8][4];
  float max[2] = {-INFINITY_, -INFINITY_}, sum[2] = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < WIDTH / 8; i++) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.f;
  const T* my_q = q_at + (warp * 16 + lane % 16) * LINE + lane / 16 * 8;

  for (int tile = 0; tile < n_tiles; tile++) {
    const T* kt = k_at + tile % 2 * TILE; const T* vt = v_at + tile % 2 * TILE;
    if (tile + 1 < n_tiles) {
      fetch(k_at + (tile + 1) % 2 * TILE, k, ks.token, (tile + 1) * KEYS, KEYS, n_keys);
      fetch(v_at + (tile + 1) % 2 * TILE, v, vs.token, (tile + 1) * KEYS, KEYS, n_keys);
    }
    copies_end();
    copies_wait<1>();
    __syncthreads();

    float s[KEYS / 8][4];
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.f;
#pragma unroll
    for (int c = 0; c < WIDTH / 16; c++) {
      u32 a[4], b[4];
      matrices(a, my_q + 16 * c);
#pragma unroll
      for (int j = 0; j < KEYS / 16; j++) {
        matrices(b, kt + (16 * j + lane / 16 * 8 + lane % 8) * LINE + 16 * c + lane / 8 % 2 * 8);
        multiply(s[2 * j], a, b[0], b[1]);
        multiply(s[2 * j + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = first + warp * 16 + lane / 4 + 8 * r;
      float high = -INFINITY_;
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int key = tile * KEYS + 8 * j + lane % 4 * 2 + e;
          float x = s[j][2 * r + e] * scale;
          if (bias && key < n_keys && row < n_queries) {
            const i64 at = bias_at + row * bs.token + key * b_key;
            x += bias_is_f32 ? ((const float*)bias)[at] : widen(((const T*)bias)[at]);
          }
          x = key < n_keys ? x * 1.4426950408889634f : -INFINITY_;   // exponentials are powers of two
          s[j][2 * r + e] = x;
          high = fmaxf(high, x);
        }
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
      high = fmaxf(high, max[r]);
      const float from = high == -INFINITY_ ? 0.f : high;            // no key seen yet: no inf - inf
      const float shrink = exp2f(max[r] - from);
      max[r] = high;
      sum[r] *= shrink;
#pragma unroll
      for (int i = 0; i < WIDTH / 8; i++) { o[i][2 * r] *= shrink; o[i][2 * r + 1] *= shrink; }
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) { s[j][2 * r + e] = exp2f(s[j][2 * r + e] - from); sum[r] += s[j][2 * r + e]; }
    }
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
      u32 a[4] = {pair(s[2 * j][0], s[2 * j][1]), pair(s[2 * j][2], s[2 * j][3]),
                  pair(s[2 * j + 1][0], s[2 * j + 1][1]), pair(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
      for (int c = 0; c < WIDTH / 16; c++) {
        u32 b[4];
        matrices_turned(b, vt + (16 * j + lane / 8 % 2 * 8 + lane % 8) * LINE + 16 * c + lane / 16 * 8);
        multiply(o[2 * c], a, b[0], b[1]);
        multiply(o[2 * c + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();                     // before the next copies come into this buffer
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = first + warp * 16 + lane / 4 + 8 * r;
    float all = sum[r];
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    if (row >= n_queries) continue;
    const float by = all > 0.f ? 1.f / all : 0.f;       // a row that sees nothing is zeros
    if (lane % 4 == 0) lse[((i64)batch * heads + head) * n_queries + row] = all > 0.f ? max[r] * 0.6931471805599453f + logf(all) : -INFINITY_;
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i++) {
      const int column = 8 * i + lane % 4 * 2;
      if (column < HEAD_DIM) *(u32*)(out + row * os.token + column) = pair(o[i][2 * r] * by, o[i][2 * r + 1] * by);
    }
  }
}
