// What CubeCL's kernels ask of CUDA's header of this name, products of tiles by a warp that are summed in f32; see
// ../headers.rs.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

__device__ inline float __float_to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// A lane's part of a tile.
template <typename Use, int m, int n, int k, typename T, typename Layout = void> struct fragment;
template <int m, int n, int k> struct fragment<accumulator, m, n, k, float> {
    static constexpr int num_elements = 8;
    float x[num_elements];
};
template <int n> struct operand {
    unsigned x[n];
};

template <int m, int n, int k>
__device__ inline void fill_fragment(fragment<accumulator, m, n, k, float>& tile, float value) {
    for (int i = 0; i < tile.num_elements; i++) tile.x[i] = value;
}

// Assembly has no loops: the registers of a tile, as operands and by their numbers.
#define EACH2(how, x) how(x[0]), how(x[1])
#define EACH4(how, x) EACH2(how, x), how(x[2]), how(x[3])
#define EACH8(how, x) EACH4(how, x), how(x[4]), how(x[5]), how(x[6]), how(x[7])
#define OUT(x) "=r"(x)
#define IN(x) "r"(x)
#define IN_F32(x) "f"(x)
#define SUM_F32(x) "+f"(x)
#define LOADED2 "{%0, %1}, [%2], %3;"
#define LOADED4 "{%0, %1, %2, %3}, [%4], %5;"
#define LOADED8 "{%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"
#define SUMS "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define FACTORS44 "{%8, %9, %10, %11}, {%12, %13, %14, %15}"
#define FACTORS88 "{%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23}"
#define FACTORS82 "{%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17}"
#define FACTORS28 "{%8, %9}, {%10, %11, %12, %13, %14, %15, %16, %17}"

// A layout of an operand: `T` is its type in a fragment, `Memory` in memory, `type` in PTX.
#define OPERAND(use, letter, m, n, k, T, Memory, type, count, layout, order) \
    template <> struct fragment<use, m, n, k, T, layout> : operand<count> {}; \
    __device__ inline void load_matrix_sync(fragment<use, m, n, k, T, layout>& tile, const Memory* from, unsigned stride) { \
        asm volatile("wmma.load." letter ".sync.aligned." order ".m" #m "n" #n "k" #k "." type " " LOADED##count \
                     : EACH##count(OUT, tile.x) : "l"(from), "r"(stride) : "memory"); \
    }

#define PRODUCT(m, n, k, T, types, a_count, b_count, layout_a, order_a, layout_b, order_b) \
    __device__ inline void mma_sync(fragment<accumulator, m, n, k, float>& d, \
                                    const fragment<matrix_a, m, n, k, T, layout_a>& a, \
                                    const fragment<matrix_b, m, n, k, T, layout_b>& b, \
                                    const fragment<accumulator, m, n, k, float>& c) { \
        d = c; \
        asm volatile("wmma.mma.sync.aligned." order_a "." order_b ".m" #m "n" #n "k" #k "." types " " SUMS ", " \
                     FACTORS##a_count##b_count ", " SUMS ";" \
                     : EACH8(SUM_F32, d.x) : EACH##a_count(IN, a.x), EACH##b_count(IN, b.x)); \
    }

#define SHAPE(m, n, k, T, Memory, type, types, a_count, b_count) \
    OPERAND(matrix_a, "a", m, n, k, T, Memory, type, a_count, row_major, "row") \
    OPERAND(matrix_a, "a", m, n, k, T, Memory, type, a_count, col_major, "col") \
    OPERAND(matrix_b, "b", m, n, k, T, Memory, type, b_count, row_major, "row") \
    OPERAND(matrix_b, "b", m, n, k, T, Memory, type, b_count, col_major, "col") \
    PRODUCT(m, n, k, T, types, a_count, b_count, row_major, "row", row_major, "row") \
    PRODUCT(m, n, k, T, types, a_count, b_count, row_major, "row", col_major, "col") \
    PRODUCT(m, n, k, T, types, a_count, b_count, col_major, "col", row_major, "row") \
    PRODUCT(m, n, k, T, types, a_count, b_count, col_major, "col", col_major, "col")

SHAPE(16, 16, 16, __half, __half, "f16", "f32.f32", 8, 8)
SHAPE(32, 8, 16, __half, __half, "f16", "f32.f32", 8, 8)
SHAPE(8, 32, 16, __half, __half, "f16", "f32.f32", 8, 8)
SHAPE(16, 16, 16, __nv_bfloat16, __nv_bfloat16, "bf16", "f32.bf16.bf16.f32", 4, 4)
SHAPE(32, 8, 16, __nv_bfloat16, __nv_bfloat16, "bf16", "f32.bf16.bf16.f32", 8, 2)
SHAPE(8, 32, 16, __nv_bfloat16, __nv_bfloat16, "bf16", "f32.bf16.bf16.f32", 2, 8)
SHAPE(16, 16, 8, precision::tf32, float, "tf32", "f32.tf32.tf32.f32", 4, 4)

#define RESULT(m, n, k, order) \
    asm volatile("wmma.store.d.sync.aligned." order ".m" #m "n" #n "k" #k ".f32 [%8], " SUMS ", %9;" \
                 :: EACH8(IN_F32, tile.x), "l"(to), "r"(stride) : "memory")
#define STORE(m, n, k) \
    __device__ inline void store_matrix_sync(float* to, const fragment<accumulator, m, n, k, float>& tile, \
                                             unsigned stride, layout_t layout) { \
        if (layout == mem_row_major) RESULT(m, n, k, "row"); \
        else RESULT(m, n, k, "col"); \
    }
STORE(16, 16, 16)
STORE(32, 8, 16)
STORE(8, 32, 16)
STORE(16, 16, 8)

} // namespace wmma
} // namespace nvcuda

#undef EACH2
#undef EACH4
#undef EACH8
#undef OUT
#undef IN
#undef IN_F32
#undef SUM_F32
#undef LOADED2
#undef LOADED4
#undef LOADED8
#undef SUMS
#undef FACTORS44
#undef FACTORS88
#undef FACTORS82
#undef FACTORS28
#undef OPERAND
#undef PRODUCT
#undef SHAPE
#undef RESULT
#undef STORE
