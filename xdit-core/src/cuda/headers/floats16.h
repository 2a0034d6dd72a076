// The operations of a type of 16 bits, SCALAR, and of two of them, PAIR. Included once for each type. All are computed in
// f32 and rounded once: for sums, products, quotients and roots that is the nearest result, as f32 has more than twice
// their digits.

__device__ inline SCALAR operator+(SCALAR a, SCALAR b) { return float(a) + float(b); }
__device__ inline SCALAR operator-(SCALAR a, SCALAR b) { return float(a) - float(b); }
__device__ inline SCALAR operator*(SCALAR a, SCALAR b) { return float(a) * float(b); }
__device__ inline SCALAR operator/(SCALAR a, SCALAR b) { return float(a) / float(b); }
__device__ inline SCALAR operator-(SCALAR a) { return -float(a); }
__device__ inline bool operator==(SCALAR a, SCALAR b) { return float(a) == float(b); }
__device__ inline bool operator!=(SCALAR a, SCALAR b) { return float(a) != float(b); }
__device__ inline bool operator<(SCALAR a, SCALAR b) { return float(a) < float(b); }
__device__ inline bool operator<=(SCALAR a, SCALAR b) { return float(a) <= float(b); }
__device__ inline bool operator>(SCALAR a, SCALAR b) { return float(a) > float(b); }
__device__ inline bool operator>=(SCALAR a, SCALAR b) { return float(a) >= float(b); }
__device__ inline PAIR operator+(PAIR a, PAIR b) { return {a.x + b.x, a.y + b.y}; }
__device__ inline PAIR operator-(PAIR a, PAIR b) { return {a.x - b.x, a.y - b.y}; }
__device__ inline PAIR operator*(PAIR a, PAIR b) { return {a.x * b.x, a.y * b.y}; }
__device__ inline PAIR operator/(PAIR a, PAIR b) { return {a.x / b.x, a.y / b.y}; }
__device__ inline PAIR operator-(PAIR a) { return {-a.x, -a.y}; }
__device__ inline PAIR __hfma2(PAIR a, PAIR b, PAIR c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

#define FUNCTION(name, in_f32) \
    __device__ inline SCALAR h##name(SCALAR x) { return in_f32(float(x)); } \
    __device__ inline PAIR h2##name(PAIR a) { return {h##name(a.x), h##name(a.y)}; }
FUNCTION(exp, expf)
FUNCTION(log, logf)
FUNCTION(sin, sinf)
FUNCTION(cos, cosf)
FUNCTION(tanh, tanhf)
FUNCTION(sqrt, sqrtf)
FUNCTION(rsqrt, rsqrtf)
FUNCTION(ceil, ceilf)
FUNCTION(floor, floorf)
FUNCTION(trunc, truncf)
FUNCTION(rint, rintf)
#undef FUNCTION

__device__ inline bool __hisnan(SCALAR x) { return x != x; }
__device__ inline int __hisinf(SCALAR x) { return isinf(float(x)); }
__device__ inline SCALAR __habs(SCALAR x) { return fabsf(x); }
__device__ inline PAIR __habs2(PAIR a) { return {__habs(a.x), __habs(a.y)}; }

// of a number and a NaN the number; with `_nan`, the NaN
__device__ inline SCALAR __hmin(SCALAR a, SCALAR b) { return fminf(a, b); }
__device__ inline SCALAR __hmax(SCALAR a, SCALAR b) { return fmaxf(a, b); }
__device__ inline SCALAR __hmin_nan(SCALAR a, SCALAR b) { return __hisnan(a) || __hisnan(b) ? a + b : __hmin(a, b); }
__device__ inline SCALAR __hmax_nan(SCALAR a, SCALAR b) { return __hisnan(a) || __hisnan(b) ? a + b : __hmax(a, b); }
__device__ inline PAIR __hmin2(PAIR a, PAIR b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
__device__ inline PAIR __hmax2(PAIR a, PAIR b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
__device__ inline PAIR __hmin2_nan(PAIR a, PAIR b) { return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)}; }
__device__ inline PAIR __hmax2_nan(PAIR a, PAIR b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }

// between the lanes of a warp, as the bits that they are
#define SHUFFLE(name, Lane) \
    __device__ inline SCALAR name(unsigned mask, SCALAR x, Lane lane) { \
        x.bits = name(mask, (unsigned)x.bits, lane); \
        return x; \
    } \
    __device__ inline PAIR name(unsigned mask, PAIR a, Lane lane) { \
        unsigned moved = name(mask, reinterpret_cast<unsigned&>(a), lane); \
        return reinterpret_cast<PAIR&>(moved); \
    }
SHUFFLE(__shfl_sync, int)
SHUFFLE(__shfl_xor_sync, int)
SHUFFLE(__shfl_up_sync, unsigned)
SHUFFLE(__shfl_down_sync, unsigned)
#undef SHUFFLE
