// Convolutions for Hopper: out = conv(x) + bias, plus a residual where there is one; bf16 or f16 with f32 sums. Stride 1,
// sides of the kernel odd, as much padding as keeps height and width.
//
// A block holds one multiprocessor and walks over its share of the items, an item being a patch of 16 by 8 ROWS pixels and
// N of the channels that come out:
//
//   warpgroup 0         the loader: one thread orders copies by the tensor memory accelerator (TMA) into shared memory
//   warpgroups 1 and 2  workers: each owns 64 ROWS pixels, whose sums stay in its registers
//
// It is a matrix product whose summed dimension runs over the kernel's places and over the channels of each: for a place
// the left matrix is the patch moved by as many pixels, which TMA fetches as a box, with zeros outside of the picture.
// Every pixel is summed in this one order, wherever it is and whatever else is computed.
//
// Defined while compiling: N (multiple of 16 up to 256), ROWS (1, or 2 where N is at most 128), STAGES.
// `wgmma_scores`, the product of two matrices in shared memory, is written by the host for N columns.

#define PIXELS (128 * ROWS)
#define X_BYTES (PIXELS * 128)          // rows of 64 channels, 128 bytes, swizzled
#define STAGE_BYTES (X_BYTES + N * 128)
#define PANELS ((N + 63) / 64)
#define PANEL_BYTES (PIXELS * 128)
#define OUT_AT (STAGES * STAGE_BYTES)   // residuals come in here, results go out from here
#define BARRIERS_AT (OUT_AT + PANELS * PANEL_BYTES)

struct Maps { Map x, weight, residual, out; };      // [batch, height, width, c]; the weight [c_out, places, c_in]

// ------------------------------------------------------------------------------------------------ tensor cores
// of a thread: rows lane/4 and lane/4 + 8 of its warp; registers 4j, 4j+1 are columns 8j + 2 (lane%4) + {0, 1} of the
// first row, 4j+2, 4j+3 of the second
typedef float Sums[ROWS][N / 2];
// Products change registers behind the compiler's back: whatever they write is held in place around a wait.
__device__ __forceinline__ void hold(Sums& x) {
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int i = 0; i < N / 2; i++) asm volatile("" : "+f"(x[r][i])::"memory");
}

__device__ __forceinline__ u32 pair(float low, float high) { return (u32)narrow(low) | ((u32)narrow(high) << 16); }
__device__ __forceinline__ u32 word(u32 at) {
  u32 x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}
__device__ __forceinline__ void add_pair(float& low, float& high, u32 x) { low += widen((u16)x); high += widen((u16)(x >> 16)); }

// ------------------------------------------------------------------------------------------------ the kernel
struct Item { int x, y, picture, c; };  // where it begins
// tiles_x, tiles_y: patches of a picture; tiles_c: of the channels, innermost, so that a patch is fetched once for all
__device__ __forceinline__ Item item_of(int i, int tiles_x, int tiles_y, int tiles_c) {
  const int patch = i / tiles_c;
  return {patch % tiles_x * 16, patch / tiles_x % tiles_y * 8 * ROWS, patch / tiles_x / tiles_y, i % tiles_c * N};
}

extern "C" __global__ void __launch_bounds__(384, 1) convolve(const __grid_constant__ Maps maps, const T* bias, int c_in, int c_out,
    int k, int tiles_x, int tiles_y, int tiles_c, int n_items, int has_residual) {
  extern __shared__ u8 shared[];
  u32 base = (u32)__cvta_generic_to_shared(shared);
  base = (base + 1023) / 1024 * 1024;                       // swizzled panels begin at multiples of 1024
  const u32 full = base + BARRIERS_AT, empty = full + 8 * STAGES, out_full = empty + 8 * STAGES, out_empty = out_full + 8;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) { init(full + 8 * i, 1); init(empty + 8 * i, 8); }
    init(out_full, 1); init(out_empty, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int panels = (c_in + 63) / 64, steps = k * k * panels;
  Ring ring;
  u32 out_phase = 0;

  if (group == 0) {
    // ---------------------------------------------------------------------------------------- loader
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp != 0 || lane != 0) return;
#pragma unroll 1
    for (int i = blockIdx.x; i < n_items; i += gridDim.x) {
      const Item item = item_of(i, tiles_x, tiles_y, tiles_c);
#pragma unroll 1
      for (int place = 0; place < k * k; place++) {
        const int x = item.x + place % k - k / 2, y = item.y + place / k - k / 2;
#pragma unroll 1
        for (int panel = 0; panel < panels; panel++) {
          const u32 at = base + ring.stage * STAGE_BYTES, barrier = full + 8 * ring.stage;
          wait(empty + 8 * ring.stage, ring.phase ^ 1);     // a new barrier lets the first round through
          expect(barrier, STAGE_BYTES);
          load(at, &maps.x, barrier, 64 * panel, x, y, item.picture);
          load(at + X_BYTES, &maps.weight, barrier, 64 * panel, place, item.c, 0);
          ring.next();
        }
      }
      if (has_residual) {                                   // when the results of the item before have long gone out
        wait(out_empty, out_phase ^ 1);
        out_phase ^= 1;
        expect(out_full, PANELS * PANEL_BYTES);
        for (int p = 0; p < PANELS; p++)
          load(base + OUT_AT + p * PANEL_BYTES, &maps.residual, out_full, item.c + 64 * p, item.x, item.y, item.picture);
      }
    }
    return;
  }

  // ------------------------------------------------------------------------------------------ workers
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int w = group - 1;
  const u64 x = matrix(base + w * ROWS * 64 * 128), weight = matrix(base + X_BYTES);
  auto give_back = [&](u32 stage) { if (lane == 0) arrive(empty + 8 * stage); };
#pragma unroll 1
  for (int i = blockIdx.x; i < n_items; i += gridDim.x) {
    const Item item = item_of(i, tiles_x, tiles_y, tiles_c);
    Sums sums;
    u32 before = 0;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      wait(full + 8 * ring.stage, ring.phase);
      hold(sums);
      products_begin();
#pragma unroll
      for (int j = 0; j < 4; j++)                           // 16 channels are 32 bytes
#pragma unroll
        for (int r = 0; r < ROWS; r++)
          wgmma_scores(sums[r], x + offset(ring.stage * STAGE_BYTES + r * 64 * 128 + 32 * j),
                       weight + offset(ring.stage * STAGE_BYTES + 32 * j), step + j != 0);
      products_end();
      products_wait<1>();                                   // those of the step before
      if (step > 0) give_back(before);
      before = ring.stage;
      ring.next();
    }
    products_wait<0>();
    hold(sums);
    give_back(before);

    // A warp's 16 rows are a row of the patch's pixels: it goes out as one box.
    if (has_residual) {
      wait(out_full, out_phase);
      out_phase ^= 1;
    } else {
      if (lane == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      __syncwarp();
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int strip = 4 * (w * ROWS + r) + warp;
      const u32 out = base + OUT_AT + strip * 16 * 128;
#pragma unroll
      for (int j = 0; j < N / 8; j += 2) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float* s = &sums[r][4 * (j + e)];
          const int c = item.c + 8 * (j + e) + lane % 4 * 2;
          if (c < c_out) {
            const u32 b = *(const u32*)(bias + c);
            add_pair(s[0], s[1], b);
            add_pair(s[2], s[3], b);
          }
          if (has_residual) {
            const u32 at = out + (j + e) / 8 * PANEL_BYTES + lane / 4 * 128 + (((j + e) % 8 ^ lane / 4) << 4) + lane % 4 * 4;
            add_pair(s[0], s[1], word(at));
            add_pair(s[2], s[3], word(at + 8 * 128));       // eight rows on, where the swizzle is the same
          }
        }
        __syncwarp();                                       // residuals are read before results take their place
        const int line = lane % 16, chunk = j + lane / 16;  // the row and the 8 columns that this lane gives an address for
        const u32 at = out + chunk / 8 * PANEL_BYTES + line * 128 + ((chunk % 8 ^ line % 8) << 4);
        const float* s = &sums[r][4 * j];
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(pair(s[0], s[1])),
                     "r"(pair(s[2], s[3])), "r"(pair(s[4], s[5])), "r"(pair(s[6], s[7])) : "memory");
      }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");   // these stores before TMA's reads
    __syncwarp();
    if (lane == 0) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const int strip = 4 * (w * ROWS + r) + warp;
        for (int p = 0; p < PANELS; p++)
          store(&maps.out, base + OUT_AT + p * PANEL_BYTES + strip * 16 * 128, item.c + 64 * p, item.x, item.y + strip, item.picture);
      }
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      if (has_residual) {
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        arrive(out_empty);
      }
    }
    __syncwarp();
  }
  if (lane == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
