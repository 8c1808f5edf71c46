/* The CPU kernels of the method. OpenMP comes from the process (torch's own thread pool); see native.py.
 *
 * 1. The sampled gradient:  out[o][k] = sum_t g[t][o] * x[t][index[o][k]]
 *
 * T tokens, I inputs, O neurons, K chosen inputs per neuron. g and x lie token by token (rows of length O
 * and I, strides in elements); index and out are dense [O][K].
 *
 * One column per neuron (`gather`): walk the tokens and pick, no layout change at all. A thread takes a part
 * of the tokens, so that each row of g and x is read once.
 * More (`blocks`): dot products over tokens want tokens side by side, so blocks of TOKENS tokens are
 * transposed while they are in cache: x once for all threads, g a tile of TILE neurons at a time. No
 * transposed copy of g or x ever stands in full.
 *
 * Every out[o][k] is summed by one thread in one order, so results do not depend on the thread count.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TOKENS 128
#define TILE 16
#define LANES 16
#define PARTS 8   /* of the tokens, each summed by itself: fixed, so that sums do not depend on the threads */
#define WIDE 1024 /* neurons at a time, so that their sums and columns stay in the first-level cache */

static inline float from_f32(float value) { return value; }

static inline float from_bf16(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline float dot(const float *restrict a, const float *restrict b) {
    float lane[LANES] = {0};
    for (int t = 0; t < TOKENS; t += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += a[t + l] * b[t + l];
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += lane[l];
    return sum;
}

#define DEFINE(NAME, ELEMENT, WIDEN)                                                                       \
                                                                                                           \
    /* rows [t0, t0 + TOKENS) x columns [c0, c0 + count) of m, as count rows of TOKENS; zeros past T */    \
    static inline void transpose_##NAME(const ELEMENT *restrict m, ptrdiff_t stride, int t0, int T,        \
                                        int c0, int count, float *restrict out) {                          \
        int rows = T - t0 < TOKENS ? T - t0 : TOKENS;                                                      \
        for (int t = 0; t < rows; t++) {                                                                   \
            const ELEMENT *row = m + (ptrdiff_t)(t0 + t) * stride + c0;                                    \
            for (int c = 0; c < count; c++) out[(size_t)c * TOKENS + t] = WIDEN(row[c]);                   \
        }                                                                                                  \
        for (int c = 0; c < count; c++)                                                                    \
            for (int t = rows; t < TOKENS; t++) out[(size_t)c * TOKENS + t] = 0;                           \
    }                                                                                                      \
                                                                                                           \
    static void gather_##NAME(const ELEMENT *restrict g, ptrdiff_t g_stride, const ELEMENT *restrict x,    \
                              ptrdiff_t x_stride, const int32_t *restrict index, int T, int O, int K,      \
                              float *restrict parts, float *restrict out) {                                \
        _Pragma("omp parallel") {                                                                          \
            _Pragma("omp for schedule(static) collapse(2)") for (int p = 0; p < PARTS; p++)                \
                for (int o0 = 0; o0 < O; o0 += WIDE) {                                                     \
                    int count = O - o0 < WIDE ? O - o0 : WIDE;                                             \
                    int t0 = (int)((long long)T * p / PARTS), t1 = (int)((long long)T * (p + 1) / PARTS);  \
                    int32_t column[WIDE];                                                                  \
                    for (int k = 0; k < K; k++) {                                                          \
                        float *restrict sum = parts + ((size_t)p * K + k) * O + o0;                        \
                        for (int j = 0; j < count; j++) column[j] = index[(size_t)(o0 + j) * K + k];       \
                        memset(sum, 0, (size_t)count * sizeof *sum);                                       \
                        for (int t = t0; t < t1; t++) {                                                    \
                            const ELEMENT *g_row = g + (ptrdiff_t)t * g_stride + o0;                       \
                            const ELEMENT *x_row = x + (ptrdiff_t)t * x_stride;                            \
                            for (int j = 0; j < count; j++)                                                \
                                sum[j] += WIDEN(g_row[j]) * WIDEN(x_row[column[j]]);                       \
                        }                                                                                  \
                    }                                                                                      \
                }                                                                                          \
            _Pragma("omp for schedule(static)") for (int o = 0; o < O; o++)                                \
                for (int k = 0; k < K; k++) {                                                              \
                    float sum = 0;                                                                         \
                    for (int p = 0; p < PARTS; p++) sum += parts[((size_t)p * K + k) * O + o];             \
                    out[(size_t)o * K + k] = sum;                                                          \
                }                                                                                          \
        }                                                                                                  \
    }                                                                                                      \
                                                                                                           \
    static void blocks_##NAME(const ELEMENT *restrict g, ptrdiff_t g_stride, const ELEMENT *restrict x,    \
                              ptrdiff_t x_stride, const int32_t *restrict index, int T, int I, int O,      \
                              int K, float *restrict x_block, float *restrict out) {                       \
        memset(out, 0, (size_t)O * K * sizeof *out);                                                       \
        _Pragma("omp parallel") for (int t0 = 0; t0 < T; t0 += TOKENS) {                                   \
            _Pragma("omp for schedule(static)") for (int i = 0; i < I; i += TILE)                          \
                transpose_##NAME(x, x_stride, t0, T, i, I - i < TILE ? I - i : TILE,                       \
                                 x_block + (size_t)i * TOKENS);                                            \
            _Pragma("omp for schedule(static)") for (int o0 = 0; o0 < O; o0 += TILE) {                     \
                float g_tile[TILE * TOKENS] __attribute__((aligned(64)));                                  \
                int count = O - o0 < TILE ? O - o0 : TILE;                                                 \
                transpose_##NAME(g, g_stride, t0, T, o0, count, g_tile);                                   \
                for (int j = 0; j < count; j++) {                                                          \
                    const int32_t *column = index + (size_t)(o0 + j) * K;                                  \
                    float *sum = out + (size_t)(o0 + j) * K;                                               \
                    for (int k = 0; k < K; k++)                                                            \
                        sum[k] += dot(g_tile + j * TOKENS, x_block + (size_t)column[k] * TOKENS);          \
                }                                                                                          \
            }                                                                                              \
        }                                                                                                  \
    }                                                                                                      \
                                                                                                           \
    /* scratch: PARTS * K * O floats for `gather`; I * TOKENS of them, 64-byte aligned, without */         \
    void sampled_grad_##NAME(const ELEMENT *g, ptrdiff_t g_stride, const ELEMENT *x, ptrdiff_t x_stride,   \
                             const int32_t *index, int T, int I, int O, int K, int gather,                 \
                             float *scratch, float *out) {                                                 \
        if (gather)                                                                                        \
            gather_##NAME(g, g_stride, x, x_stride, index, T, O, K, scratch, out);                         \
        else                                                                                               \
            blocks_##NAME(g, g_stride, x, x_stride, index, T, I, O, K, scratch, out);                      \
    }

DEFINE(f32, float, from_f32)
DEFINE(bf16, uint16_t, from_bf16)

/* 2. The K entries of every row with the largest magnitude; of equal ones the lower column.
 *
 * Without its sign bit, an IEEE number's bits order like its magnitude, so all comparisons are of integers
 * (NaN and infinity come out on top, where the caller finds them). One pass over a row: a block of columns is
 * looked at closely only if any of it beats the smallest entry held so far, which soon becomes rare.
 */
#define LOOK 32

#define DEFINE_TOP_K(NAME, BITS, MAGNITUDE)                                                                \
    static inline int beaten_##NAME(const BITS *restrict row, int count, BITS least) {                     \
        int any = 0;                                                                                       \
        for (int j = 0; j < count; j++) any |= (BITS)(row[j] & MAGNITUDE) > least;                         \
        return any;                                                                                        \
    }                                                                                                      \
                                                                                                           \
    /* value and column hold the K best so far, at `worst` the one to go next: smallest, then rightmost */ \
    static inline int worst_##NAME(const BITS *value, const int32_t *column, int K) {                      \
        int worst = 0;                                                                                     \
        for (int k = 1; k < K; k++)                                                                        \
            if (value[k] < value[worst] || (value[k] == value[worst] && column[k] > column[worst]))        \
                worst = k;                                                                                 \
        return worst;                                                                                      \
    }                                                                                                      \
                                                                                                           \
    void top_k_##NAME(const BITS *weight, ptrdiff_t stride, int O, int I, int K, int32_t *index) {         \
        _Pragma("omp parallel for schedule(static)") for (int o = 0; o < O; o++) {                         \
            const BITS *row = weight + (ptrdiff_t)o * stride;                                              \
            int32_t *column = index + (size_t)o * K;                                                       \
            BITS value[K];                                                                                 \
            for (int k = 0; k < K; k++) {                                                                  \
                value[k] = row[k] & MAGNITUDE;                                                             \
                column[k] = k;                                                                             \
            }                                                                                              \
            int worst = worst_##NAME(value, column, K);                                                    \
            for (int i0 = K; i0 < I; i0 += LOOK) {                                                         \
                int count = I - i0 < LOOK ? I - i0 : LOOK;                                                 \
                if (!beaten_##NAME(row + i0, count, value[worst])) continue;                               \
                for (int i = i0; i < i0 + count; i++) {                                                    \
                    BITS magnitude = row[i] & MAGNITUDE;                                                   \
                    if (magnitude <= value[worst]) continue;                                               \
                    value[worst] = magnitude;                                                              \
                    column[worst] = i;                                                                     \
                    worst = worst_##NAME(value, column, K);                                                \
                }                                                                                          \
            }                                                                                              \
        }                                                                                                  \
    }

DEFINE_TOP_K(16, uint16_t, 0x7FFF)
DEFINE_TOP_K(32, uint32_t, 0x7FFFFFFFu)
