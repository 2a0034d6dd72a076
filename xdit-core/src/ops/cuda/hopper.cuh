// What the kernels for Hopper share: barriers in shared memory, copies by the tensor memory accelerator (TMA), products of
// a warpgroup. STAGES is defined while compiling.

struct alignas(64) Map { u8 bytes[128]; };    // CUtensorMap

// ------------------------------------------------------------------------------------------------ barriers, copies
// coordinates run from the innermost dimension to the outermost
__device__ __forceinline__ void init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {   // arrives, and says what will be copied
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
  asm volatile("{\n.reg .pred ready;\nretry:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 ready, [%0], %1;\n"
               "@ready bra.uni done;\nbra.uni retry;\ndone:\n}" ::"r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void load(u32 to, const Map* map, u32 barrier, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
               ::"r"(to), "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
__device__ __forceinline__ void store(const Map* map, u32 from, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
               ::"l"(map), "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}

// A place in a ring, and which time round it is.
template <int DEPTH> struct RingOf {
  u32 stage = 0, phase = 0;
  __device__ __forceinline__ void next() { if (++stage == DEPTH) { stage = 0; phase ^= 1; } }
};
typedef RingOf<STAGES> Ring;

// ------------------------------------------------------------------------------------------------ products
// How a warpgroup's product finds a matrix in shared memory: address, distance of panels, distance of groups of 8 rows
// (1024 bytes), all in 16 bytes; swizzled by 128 bytes.
__device__ __forceinline__ u64 matrix(u32 at, u32 panel = 0) {
  return (u64)((at & 0x3FFFF) >> 4) | ((u64)(panel >> 4) << 16) | ((u64)(1024 >> 4) << 32) | (1ull << 62);
}
__device__ __forceinline__ u64 offset(u32 bytes) { return (u64)(bytes >> 4); }
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
