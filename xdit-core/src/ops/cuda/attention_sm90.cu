// Attention for Hopper: out = softmax(scale q k^T) v and each row's log-sum-exp, bf16 or f16 with f32 sums.
//
// A block holds one multiprocessor and walks over its share of the items, an item being a tile of queries of one head:
//
//   warpgroup 0         the loader: one thread orders copies by the tensor memory accelerator (TMA) into shared memory
//   warpgroups 1 to N   workers: each owns 64 query rows; scores and outputs stay in its registers
//
// Keys and values have rings of STAGES tiles of KEYS rows. While a worker turns scores into weights the others' products
// run, and its own product of weights and values runs behind the next scores: tensor cores and exponentials take the same
// time at a head size of 128, so neither may wait for the other. The order of work inside a tile is fixed by barriers
// that hand a turn from worker to worker.
//
// Keys are visited from the last tile to the first: the one tile that may be partly empty comes first, outside the loop. A
// row's sum depends on its keys alone: items are never cut along the keys.
//
// Defined while compiling: HEAD_DIM (multiple of 8; the tensor cores see the next multiple of 16, TMA fills in zeros),
// KEYS (rows of a tile, multiple of 16), WORKERS (2: up to 240 registers a thread, 3: 160), STAGES, Q_STAGES (2: the next
// item's queries come while this one is computed, where there is room), and how products and exponentials wait for each other:
//   EARLY 1   the product with the values is waited for before the exponentials: weights take the place of scores one by
//             one, so that both need not be held, and tiles can be larger
//   EARLY 0   after them
//   LAZY 1    outputs are rescaled only when a row's maximum grows by more than 2^8: until then weights are at most 2^8,
//             which f32 sums and bf16 weights hold as well as 1
//   BIAS 1    each batch entry has numbers that are added to its keys' scores, f32; minus infinity hides a key
// `wgmma_scores` and `wgmma_values` are written by the host for these sizes.

#define WIDTH ((HEAD_DIM + 15) / 16 * 16)
#define PANELS ((WIDTH + 63) / 64)      // tiles lie as panels of 64 columns: rows of 128 bytes, swizzled
#define QUERIES (64 * WORKERS)
#define Q_PANEL (64 * 128)
#define Q_WORKER (PANELS * Q_PANEL)     // a worker's queries, later its outputs
#define PANEL (KEYS * 128)
#define TILE (PANELS * PANEL)
#define K_AT (Q_STAGES * WORKERS * Q_WORKER)
#define V_AT (K_AT + STAGES * TILE)
#define BARRIERS_AT (V_AT + STAGES * TILE)

struct Maps { Map q, k, v, out; };            // each [batch, heads, tokens, HEAD_DIM]

// ------------------------------------------------------------------------------------------------ turns
// numbered barriers of the hardware; the count of threads is part of the call
template <int N> __device__ __forceinline__ void meet(int id) { asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(N) : "memory"); }
template <int N> __device__ __forceinline__ void pass_turn(int id) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(N) : "memory"); }

// ------------------------------------------------------------------------------------------------ tensor cores
// Products change registers behind the compiler's back: whatever they read or write is held in place around a wait.
template <int N> __device__ __forceinline__ void hold(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N> __device__ __forceinline__ void hold(u32 (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

typedef float Scores[KEYS / 2];      // of a thread: rows lane/4 and lane/4 + 8 of its warp; registers 4j, 4j+1 are columns
typedef float Outputs[WIDTH / 2];    // 8j + 2 (lane%4) + {0, 1} of the first row, 4j+2, 4j+3 of the second
typedef u32 Weights[KEYS / 4];       // scores in pairs: laid out as the tensor cores want their left operand

__device__ __forceinline__ void multiply_scores(Scores& s, u64 q, u64 k) {
#pragma unroll
  for (int i = 0; i < WIDTH / 16; i++) {   // 16 channels are 32 bytes; 4 such steps a panel
    const u32 in_panel = (i % 4) * 32;
    wgmma_scores(s, q + offset((i / 4) * Q_PANEL + in_panel), k + offset((i / 4) * PANEL + in_panel), i != 0);
  }
}
__device__ __forceinline__ void add_values(Outputs& o, Weights& w, u64 v) {
#pragma unroll
  for (int i = 0; i < KEYS / 16; i++) wgmma_values(o, w + 4 * i, v + offset(i * 16 * 128));
}

// ------------------------------------------------------------------------------------------------ softmax
#define INFINITY_ __int_as_float(0x7f800000)
__device__ __forceinline__ float exp2_of(float x) {
  float y;   // volatile: not to be moved behind the wait for the values
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ u32 pair(float low, float high) {
  u32 y;
#ifdef F16
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
#endif
  return y;
}
// One of a thread's two rows: maximum of its scores so far, unscaled, and this thread's part of the sum of exponentials.
struct Row { float max = -INFINITY_, sum = 0.f; };

// Scores of keys past the end, for which TMA brought zeros.
__device__ __forceinline__ void hide(Scores& s, int n_keys, int lane) {
  if (n_keys >= KEYS) return;
#pragma unroll
  for (int i = 0; i < KEYS / 2; i++)
    if ((i / 4) * 8 + (lane % 4) * 2 + i % 2 >= n_keys) s[i] = -INFINITY_;
}
// Adds to the scores what the tile's keys have, in units of unscaled scores; past the end nothing is read.
__device__ __forceinline__ void add_bias(Scores& s, const float* bias, int n_keys, int lane, float by) {
#if BIAS
#pragma unroll
  for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int key = 8 * j + lane % 4 * 2 + e;
      const float b = key < n_keys ? bias[key] * by : 0.f;
      s[4 * j + e] += b; s[4 * j + 2 + e] += b;
    }
#endif
}
// Raises the maximum of row R by its new scores and returns by how much what was summed so far shrinks.
template <int R> __device__ __forceinline__ float raise(const Scores& s, Row& row, float scale2) {
  float a = s[2 * R], b = s[2 * R + 1];   // two chains: a thread has to hide its own latency
#pragma unroll
  for (int j = 1; j < KEYS / 8; j++) { a = fmaxf(a, s[4 * j + 2 * R]); b = fmaxf(b, s[4 * j + 2 * R + 1]); }
  a = fmaxf(a, b);
  a = fmaxf(a, __shfl_xor_sync(~0u, a, 1));
  a = fmaxf(a, __shfl_xor_sync(~0u, a, 2));
  a = fmaxf(a, row.max);
#if BIAS
  a = fmaxf(a, -1e38f);     // no key seen yet: no inf - inf
#endif
#if LAZY
  if ((a - row.max) * scale2 <= 8.f) a = row.max;
#endif
  const float shrink = exp2_of((row.max - a) * scale2);
  row.max = a;
  return shrink;
}
// Scores to weights, and their sums; packed at once if WITH_PAIRS.
template <bool WITH_PAIRS> __device__ __forceinline__ void weigh(Scores& s, Weights& w, Row (&row)[2], float scale2, const float (&shrink)[2]) {
  const float m0 = row[0].max * scale2, m1 = row[1].max * scale2;
  float a0 = row[0].sum * shrink[0], a1 = row[1].sum * shrink[1], b0 = 0.f, b1 = 0.f;
#pragma unroll
  for (int j = 0; j < KEYS / 8; j++) {
    const float x0 = exp2_of(fmaf(s[4 * j], scale2, -m0)), x1 = exp2_of(fmaf(s[4 * j + 1], scale2, -m0));
    const float y0 = exp2_of(fmaf(s[4 * j + 2], scale2, -m1)), y1 = exp2_of(fmaf(s[4 * j + 3], scale2, -m1));
    a0 += x0; b0 += x1; a1 += y0; b1 += y1;
    if (WITH_PAIRS) { w[2 * j] = pair(x0, x1); w[2 * j + 1] = pair(y0, y1); }
    else { s[4 * j] = x0; s[4 * j + 1] = x1; s[4 * j + 2] = y0; s[4 * j + 3] = y1; }
  }
  row[0].sum = a0 + b0; row[1].sum = a1 + b1;
}
__device__ __forceinline__ void to_weights(Weights& w, const Scores& s) {
#pragma unroll
  for (int i = 0; i < KEYS / 4; i++) w[i] = pair(s[2 * i], s[2 * i + 1]);
}
__device__ __forceinline__ void shrink_outputs(Outputs& o, const float (&shrink)[2]) {
#if LAZY
  if (__all_sync(~0u, shrink[0] == 1.f && shrink[1] == 1.f)) return;
#endif
#pragma unroll
  for (int j = 0; j < WIDTH / 8; j++) {
    o[4 * j] *= shrink[0]; o[4 * j + 1] *= shrink[0]; o[4 * j + 2] *= shrink[1]; o[4 * j + 3] *= shrink[1];
  }
}

// Waits until this thread's copies of outputs have read shared memory.
__device__ __forceinline__ void outputs_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// ------------------------------------------------------------------------------------------------ the kernel
// lse: [batch, heads, n_queries], natural logarithms; n_tiles: query tiles of a head; n_items: of all heads
// bias: a row of n_keys numbers for each batch entry, or the same for all (stride 0); not read without BIAS
extern "C" __global__ void __launch_bounds__(128 * (WORKERS + 1), 1) attention(const __grid_constant__ Maps maps, float* lse,
    int n_queries, int n_keys, int heads, int n_tiles, int n_items, float scale, const float* bias, i64 bias_batch) {
  extern __shared__ u8 shared[];
  u32 base = (u32)__cvta_generic_to_shared(shared);
  base = (base + 1023) / 1024 * 1024;                       // swizzled panels begin at multiples of 1024
  // full: by the loader's copies; empty: by the workers' warps
  const u32 k_full = base + BARRIERS_AT, k_empty = k_full + 8 * STAGES, v_full = k_empty + 8 * STAGES,
            v_empty = v_full + 8 * STAGES, q_full = v_empty + 8 * STAGES, q_empty = q_full + 8 * WORKERS * Q_STAGES;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      init(k_full + 8 * i, 1); init(v_full + 8 * i, 1);
      init(k_empty + 8 * i, 4 * WORKERS); init(v_empty + 8 * i, 4 * WORKERS);
    }
    for (int i = 0; i < WORKERS * Q_STAGES; i++) { init(q_full + 8 * i, 1); init(q_empty + 8 * i, 4); }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int last = (n_keys + KEYS - 1) / KEYS - 1;          // the key tile to begin with

  if (group == 0) {
    // ---------------------------------------------------------------------------------------- loader
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(WORKERS == 2 ? 24 : 32));
    if (warp != 0 || lane != 0) return;
    Ring k, v;
    RingOf<Q_STAGES> q;
#pragma unroll 1
    for (int item = blockIdx.x; item < n_items; item += gridDim.x) {
      const int tile = item % n_tiles, head = item / n_tiles % heads, batch = item / n_tiles / heads;
      auto fetch = [&](const Map* map, u32 ring_at, u32 full, u32 empty, Ring& ring, int key_tile) {
        wait(empty + 8 * ring.stage, ring.phase ^ 1);       // a new barrier lets the first round through
        expect(full + 8 * ring.stage, TILE);
#pragma unroll
        for (int p = 0; p < PANELS; p++)
          load(base + ring_at + ring.stage * TILE + p * PANEL, map, full + 8 * ring.stage, p * 64, key_tile * KEYS, head, batch);
        ring.next();
      };
      auto fetch_k = [&](int key_tile) { fetch(&maps.k, K_AT, k_full, k_empty, k, key_tile); };
      auto fetch_v = [&](int key_tile) { fetch(&maps.v, V_AT, v_full, v_empty, v, key_tile); };
      // in the order in which the workers ask
      fetch_k(last);
#pragma unroll 1
      for (int w = 0; w < WORKERS; w++) {
        const int place = q.stage * WORKERS + w;
        wait(q_empty + 8 * place, q.phase ^ 1);
        expect(q_full + 8 * place, Q_WORKER);
#pragma unroll
        for (int p = 0; p < PANELS; p++)
          load(base + place * Q_WORKER + p * Q_PANEL, &maps.q, q_full + 8 * place, p * 64, tile * QUERIES + 64 * w, head, batch);
      }
      q.next();
#pragma unroll 1
      for (int n = last - 1; n >= 0; n--) { fetch_k(n); fetch_v(n + 1); }
      fetch_v(0);
    }
    return;
  }

  // ------------------------------------------------------------------------------------------ workers
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(WORKERS == 2 ? 240 : 160));
  const int w = group - 1;
  const float scale2 = scale * 1.4426950408889634f;         // exponentials are powers of two
  const u64 k0 = matrix(base + K_AT, 0), v0 = matrix(base + V_AT, PANEL);
  const int my_turn = 1 + w, next_turn = 1 + (w + 1) % WORKERS, among_us = 5 + w;
  if (w == WORKERS - 1) pass_turn<256>(1);                  // the first worker begins
  Ring k, v;
  RingOf<Q_STAGES> q_ring;
  u32 stored = 0;                                           // the queries' place that outputs are being copied from
  auto give_back = [&](u32 empty, u32 stage) { if (lane == 0) arrive(empty + 8 * stage); };
#pragma unroll 1
  for (int item = blockIdx.x; item < n_items; item += gridDim.x) {
    const int tile = item % n_tiles, head = item / n_tiles % heads, batch = item / n_tiles / heads;
    const int first_row = tile * QUERIES + 64 * w;
    Scores s;
    Outputs o;
    Weights weights;
    Row row[2];
    float shrink[2];
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) o[i] = 0.f;

    const int place = q_ring.stage * WORKERS + w;
    const u64 q = matrix(base + place * Q_WORKER, 0);
    wait(q_full + 8 * place, q_ring.phase);
    q_ring.next();
    wait(k_full + 8 * k.stage, k.phase);
    products_begin();
    multiply_scores(s, q, k0 + offset(k.stage * TILE));
    products_end();
    if (Q_STAGES > 1 && item != blockIdx.x && lane == 0) {  // by now the outputs of the item before are copied
      outputs_read();
      arrive(q_empty + 8 * stored);
    }
    products_wait<0>();
    hold(s);
    give_back(k_empty, k.stage);
    k.next();
    const float* my_bias = bias + batch * bias_batch;
    add_bias(s, my_bias + last * KEYS, n_keys - last * KEYS, lane, 1.f / scale);
    hide(s, n_keys - last * KEYS, lane);
    shrink[0] = raise<0>(s, row[0], scale2);
    shrink[1] = raise<1>(s, row[1], scale2);
    weigh<true>(s, weights, row, scale2, shrink);
    wait(v_full + 8 * v.stage, v.phase);

#pragma unroll 1
    for (int n = last - 1; n >= 0; n--) {
      wait(k_full + 8 * k.stage, k.phase);
      meet<256>(my_turn);
      hold(o); hold(weights);
      products_begin();
      multiply_scores(s, q, k0 + offset(k.stage * TILE));
      products_end();
      add_values(o, weights, v0 + offset(v.stage * TILE));
      products_end();
      pass_turn<256>(next_turn);
      products_wait<1>();                                   // the scores are there
      hold(s);
      give_back(k_empty, k.stage);
      k.next();
      add_bias(s, my_bias + n * KEYS, KEYS, lane, 1.f / scale);
      shrink[0] = raise<0>(s, row[0], scale2);
      shrink[1] = raise<1>(s, row[1], scale2);
#if EARLY
      hold(s);
      products_wait<0>();
      hold(o); hold(weights); hold(s);
      give_back(v_empty, v.stage);
      v.next();
      shrink_outputs(o, shrink);
      weigh<true>(s, weights, row, scale2, shrink);
      wait(v_full + 8 * v.stage, v.phase);
#else
      weigh<false>(s, weights, row, scale2, shrink);
      hold(s);
      const u32 used = v.stage;
      v.next();
      // The wait for the next values stands here, not where they are used: it ends a basic block, and without one the
      // assembler moves the wait for the product above the exponentials, which are to run beside it.
      wait(v_full + 8 * v.stage, v.phase);
      products_wait<0>();
      hold(o); hold(weights);
      give_back(v_empty, used);
      to_weights(weights, s);
      shrink_outputs(o, shrink);
#endif
    }

    hold(o); hold(weights);
    products_begin();
    add_values(o, weights, v0 + offset(v.stage * TILE));
    products_end();
    float by[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = row[r].sum;
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const int at = first_row + 16 * warp + lane / 4 + 8 * r;
      if (lane % 4 == 0 && at < n_queries)
        lse[((i64)batch * heads + head) * n_queries + at] = sum > 0.f ? row[r].max * scale + logf(sum) : -INFINITY_;
      by[r] = sum > 0.f ? 1.f / sum : 0.f;                  // a row that sees nothing is zeros
    }
    products_wait<0>();
    hold(o); hold(weights);
    give_back(v_empty, v.stage);
    v.next();

    // Outputs go through the worker's queries, which are done with: 16 rows a warp, swizzled as TMA reads them.
    meet<128>(among_us);
    const u32 out = base + place * Q_WORKER;
    stored = place;
    const int line = 16 * warp + lane % 16;                 // the row that this lane gives an address for
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j += 2) {
      const int chunk = j + lane / 16;                      // 8 columns
      const u32 at = out + (j / 8) * Q_PANEL + line * 128 + ((chunk % 8 ^ line % 8) << 4);
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                   "r"(pair(o[4 * j] * by[0], o[4 * j + 1] * by[0])), "r"(pair(o[4 * j + 2] * by[1], o[4 * j + 3] * by[1])),
                   "r"(pair(o[4 * j + 4] * by[0], o[4 * j + 5] * by[0])), "r"(pair(o[4 * j + 6] * by[1], o[4 * j + 7] * by[1]))
                   : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");   // these stores before TMA's reads
    __syncwarp();
    if (lane == 0) {
#pragma unroll
      for (int p = 0; p < PANELS; p++)
        store(&maps.out, out + p * Q_PANEL + 16 * warp * 128, p * 64, first_row + 16 * warp, head, batch);
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      if (Q_STAGES == 1) {
        outputs_read();
        arrive(q_empty + 8 * stored);
      }
    }
    __syncwarp();
  }
  if (lane == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
