/* The sampled gradient:  out[o][k] = sum_t g[t][o] * x[t][index[o][k]]
 *
 * T tokens, I inputs, O neurons, K chosen inputs per neuron. g and x lie token by token (rows of length O
 * and I, strides in elements); index and out are dense [O][K]. OpenMP comes from the process (torch's own
 * thread pool); see native.py.
 *
 * A dot product over tokens wants tokens side by side, so x is turned into columns of tokens, a block of
 * tokens at a time, and g a tile of TILE neurons at a time. The columns may be handed back in: layers that
 * read the same x (q, k, v; gate, up) turn it once. bf16 stays bf16, and is multiplied by dot products of
 * pairs where the processor has them; sums are fp32.
 *
 * Every out[o][k] is summed by one thread in one order, so results do not depend on the thread count.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define WIDE 1
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define HALF 1 /* vectors of half a cache line, two for one of the above */
#endif

#define TURNED 16 /* columns are turned at a time */
#define TILE 64   /* neurons at a time: whole cache lines of g are read, and used at once */
#define BYTES 64  /* of a vector; a column's tokens are padded with zeros to whole vectors */
#define MOST 1024 /* bytes of a column at most */
#define SPAN 64  /* columns of x that one thread turns, of a vector of tokens */

#ifdef WIDE

/* the same columns of the tokens that come next: the processor does not foresee so many rows side by side */
#define AHEAD(from, tokens, stride) _mm_prefetch((const char *)((from) + (tokens) * (stride)), _MM_HINT_T1)

/* 16 vectors of 16 words as a matrix, turned: word c of vector t becomes word t of vector c */
static inline void turn_words(__m512i *row) {
    __m512i a[16];
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        row[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        row[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        row[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        row[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) {
            a[8 * i + j] = _mm512_shuffle_i32x4(row[8 * i + j], row[8 * i + 4 + j], 0x88);
            a[8 * i + 4 + j] = _mm512_shuffle_i32x4(row[8 * i + j], row[8 * i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 4; j++) {
        row[j] = _mm512_shuffle_i32x4(a[j], a[8 + j], 0x88);
        row[8 + j] = _mm512_shuffle_i32x4(a[j], a[8 + j], 0xdd);
        row[4 + j] = _mm512_shuffle_i32x4(a[4 + j], a[12 + j], 0x88);
        row[12 + j] = _mm512_shuffle_i32x4(a[4 + j], a[12 + j], 0xdd);
    }
}

/* tokens [t0, t0 + 16) of some columns, zeros for those past `rows`; column c's tokens go to out + c * room */
static inline void turn_f32(const float *m, ptrdiff_t stride, int t0, int rows, int count, float *out,
                            int room) {
    __mmask16 inside = (__mmask16)((1u << count) - 1);
    __m512i row[16];
    for (int t = 0; t < 16; t++) {
        const float *from = m + (ptrdiff_t)(t0 + t) * stride;
        row[t] = t0 + t < rows ? _mm512_maskz_loadu_epi32(inside, from) : _mm512_setzero_si512();
        AHEAD(from, 16, stride);
    }
    turn_words(row);
    for (int c = 0; c < count; c++) _mm512_storeu_si512(out + (size_t)c * room + t0, row[c]);
}

/* two tokens make a word, so pairs of tokens are turned like single ones */
static inline void turn_bf16(const uint16_t *m, ptrdiff_t stride, int t0, int rows, int count, uint16_t *out,
                             int room) {
    __mmask16 inside = (__mmask16)((1u << count) - 1);
    __m512i row[16];
    for (int t = 0; t < 16; t++) {
        __m512i pair = _mm512_setzero_si512();
        for (int half = 0; half < 2; half++) {
            const int token = t0 + 2 * t + half;
            if (token >= rows) continue;
            const uint16_t *from = m + (ptrdiff_t)token * stride;
            AHEAD(from, 32, stride);
            __m512i word = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, from));
            pair = _mm512_or_si512(pair, half ? _mm512_slli_epi32(word, 16) : word);
        }
        row[t] = pair;
    }
    turn_words(row);
    for (int c = 0; c < count; c++) _mm512_storeu_si512(out + (size_t)c * room + t0, row[c]);
}

typedef __m512 sums_t;
#define NO_SUMS _mm512_setzero_ps()
#define TOTAL(sums) _mm512_reduce_add_ps(sums)

static inline sums_t add_f32(sums_t sums, const float *a, const float *b) {
    return _mm512_fmadd_ps(_mm512_loadu_ps(a), _mm512_loadu_ps(b), sums);
}

static inline sums_t add_bf16(sums_t sums, const uint16_t *a, const uint16_t *b) {
    __m512i one = _mm512_loadu_si512(a), other = _mm512_loadu_si512(b);
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(sums, (__m512bh)one, (__m512bh)other);
#else
    __m512i high = _mm512_set1_epi32((int)0xffff0000);
    __m512 odd_one = _mm512_castsi512_ps(_mm512_and_si512(one, high));
    __m512 odd_other = _mm512_castsi512_ps(_mm512_and_si512(other, high));
    __m512 even_one = _mm512_castsi512_ps(_mm512_slli_epi32(one, 16));
    __m512 even_other = _mm512_castsi512_ps(_mm512_slli_epi32(other, 16));
    return _mm512_fmadd_ps(even_one, even_other, _mm512_fmadd_ps(odd_one, odd_other, sums));
#endif
}

#elif defined(HALF)

/* 8 vectors of 8 words as a matrix, turned: word c of vector t becomes word t of vector c */
static inline void turn_words(__m256i *row) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        row[j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x20);
        row[4 + j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x31);
    }
}

/* the first `count` of 8 columns */
static inline __m256i inside(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline void turn_f32(const float *m, ptrdiff_t stride, int t0, int rows, int count, float *out,
                            int room) {
    for (int c0 = 0; c0 < count; c0 += 8)
        for (int half = 0; half < 16; half += 8) {
            __m256i row[8];
            for (int t = 0; t < 8; t++) {
                const int token = t0 + half + t;
                const int *from = (const int *)(m + (ptrdiff_t)token * stride + c0);
                row[t] = token < rows ? _mm256_maskload_epi32(from, inside(count - c0))
                                      : _mm256_setzero_si256();
            }
            turn_words(row);
            for (int c = c0; c < count && c < c0 + 8; c++)
                _mm256_storeu_si256((__m256i *)(out + (size_t)c * room + t0 + half), row[c - c0]);
        }
}

/* 8 columns of a token as words, zeros past `count`: there is no masked load of 16 bits */
static inline __m256i words(const uint16_t *from, int count) {
    uint16_t few[8] = {0};
    if (count < 8) from = memcpy(few, from, (size_t)count * sizeof *from);
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
}

/* two tokens make a word, so pairs of tokens are turned like single ones */
static inline void turn_bf16(const uint16_t *m, ptrdiff_t stride, int t0, int rows, int count, uint16_t *out,
                             int room) {
    for (int c0 = 0; c0 < count; c0 += 8)
        for (int half = 0; half < 32; half += 16) {
            __m256i row[8];
            for (int t = 0; t < 8; t++) {
                const int token = t0 + half + 2 * t;
                const uint16_t *from = m + (ptrdiff_t)token * stride + c0;
                row[t] = token < rows ? words(from, count - c0) : _mm256_setzero_si256();
                if (token + 1 < rows)
                    row[t] = _mm256_or_si256(row[t], _mm256_slli_epi32(words(from + stride, count - c0), 16));
            }
            turn_words(row);
            for (int c = c0; c < count && c < c0 + 8; c++)
                _mm256_storeu_si256((__m256i *)(out + (size_t)c * room + t0 + half), row[c - c0]);
        }
}

typedef struct {
    __m256 low, high;
} sums_t;
#define NO_SUMS ((sums_t){_mm256_setzero_ps(), _mm256_setzero_ps()})

static inline float TOTAL(sums_t sums) {
    const __m256 eight = _mm256_add_ps(sums.low, sums.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline sums_t add_f32(sums_t sums, const float *a, const float *b) {
    sums.low = _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), sums.low);
    sums.high = _mm256_fmadd_ps(_mm256_loadu_ps(a + 8), _mm256_loadu_ps(b + 8), sums.high);
    return sums;
}

static inline __m256 pairs_added(__m256 sums, const uint16_t *a, const uint16_t *b) {
    const __m256i one = _mm256_loadu_si256((const __m256i *)a);
    const __m256i other = _mm256_loadu_si256((const __m256i *)b);
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    const __m256 odd_one = _mm256_castsi256_ps(_mm256_and_si256(one, high));
    const __m256 odd_other = _mm256_castsi256_ps(_mm256_and_si256(other, high));
    const __m256 even_one = _mm256_castsi256_ps(_mm256_slli_epi32(one, 16));
    const __m256 even_other = _mm256_castsi256_ps(_mm256_slli_epi32(other, 16));
    return _mm256_fmadd_ps(even_one, even_other, _mm256_fmadd_ps(odd_one, odd_other, sums));
}

static inline sums_t add_bf16(sums_t sums, const uint16_t *a, const uint16_t *b) {
    return (sums_t){pairs_added(sums.low, a, b), pairs_added(sums.high, a + 16, b + 16)};
}

#else /* vectors of 16 bytes, which gcc and clang make of whatever there is (NEON, SSE, VSX) */

typedef float floats_t __attribute__((vector_size(16)));
typedef uint32_t words_t __attribute__((vector_size(16)));

/* a sum in memory would be the slowest part: by name each vector gets a register */
typedef struct {
    floats_t a, b, c, d;
} sums_t;
#define NO_SUMS ((sums_t){{0}, {0}, {0}, {0}})

static inline float TOTAL(sums_t sums) {
    const floats_t four = (sums.a + sums.b) + (sums.c + sums.d);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

static inline floats_t floats(const float *from) {
    floats_t found;
    memcpy(&found, from, sizeof found);
    return found;
}

static inline sums_t add_f32(sums_t sums, const float *a, const float *b) {
    sums.a += floats(a) * floats(b);
    sums.b += floats(a + 4) * floats(b + 4);
    sums.c += floats(a + 8) * floats(b + 8);
    sums.d += floats(a + 12) * floats(b + 12);
    return sums;
}

/* 8 products: each word holds two numbers, and either half of it, at the top, is one of them in fp32 */
static inline floats_t pairs_added(floats_t sums, const uint16_t *a, const uint16_t *b) {
    const words_t high = {0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};
    words_t one, other;
    memcpy(&one, a, sizeof one);
    memcpy(&other, b, sizeof other);
    sums += (floats_t)(one & high) * (floats_t)(other & high);
    return sums + (floats_t)(one << 16) * (floats_t)(other << 16);
}

static inline sums_t add_bf16(sums_t sums, const uint16_t *a, const uint16_t *b) {
    sums.a = pairs_added(sums.a, a, b);
    sums.b = pairs_added(sums.b, a + 8, b + 8);
    sums.c = pairs_added(sums.c, a + 16, b + 16);
    sums.d = pairs_added(sums.d, a + 24, b + 24);
    return sums;
}

#define DEFINE_TURN(NAME, ELEMENT)                                                                         \
    static inline void turn_##NAME(const ELEMENT *m, ptrdiff_t stride, int t0, int rows, int count,        \
                                   ELEMENT *out, int room) {                                               \
        for (int t = t0; t < t0 + (int)(BYTES / sizeof *out); t++)                                         \
            for (int c = 0; c < count; c++)                                                                \
                out[(size_t)c * room + t] = t < rows ? m[(ptrdiff_t)t * stride + c] : 0;                   \
    }

DEFINE_TURN(f32, float)
DEFINE_TURN(bf16, uint16_t)

#endif

/* block   tokens at a time, whole vectors of them, at most MOST bytes
 * turned  the columns of x, block after block of I columns: ready where it holds them, else they are put
 *         there; with keep of all blocks, without of one block after the other. 64-byte aligned
 */
#define DEFINE(NAME, ELEMENT)                                                                              \
    static inline void all_##NAME(const ELEMENT *m, ptrdiff_t stride, int t0, int rows, int count,         \
                                  ELEMENT *out, int room) {                                                \
        for (int c = 0; c < count; c += TURNED)                                                            \
            turn_##NAME(m + c, stride, t0, rows, count - c < TURNED ? count - c : TURNED,                  \
                        out + (size_t)c * room, room);                                                     \
    }                                                                                                      \
                                                                                                           \
    void sampled_grad_##NAME(const ELEMENT *g, ptrdiff_t g_stride, const ELEMENT *x, ptrdiff_t x_stride,   \
                             const int32_t *index, int T, int I, int O, int K, int block, int keep,        \
                             int ready, ELEMENT *turned, float *out) {                                     \
        const int vector = BYTES / sizeof(ELEMENT);                                                        \
        _Pragma("omp parallel") for (int t0 = 0; t0 < T; t0 += block) {                                    \
            const int rows = T - t0 < block ? T - t0 : block;                                              \
            const int room = (rows + vector - 1) / vector * vector;                                        \
            ELEMENT *columns = turned + (keep ? (size_t)t0 * I : 0);                                       \
            if (!ready) {                                                                                  \
                _Pragma("omp for schedule(static) collapse(2)") for (int i0 = 0; i0 < I; i0 += SPAN)       \
                    for (int t = 0; t < room; t += vector)                                                 \
                        all_##NAME(x + t0 * x_stride + i0, x_stride, t, rows,                              \
                                   I - i0 < SPAN ? I - i0 : SPAN, columns + (size_t)i0 * room, room);      \
            }                                                                                              \
            _Pragma("omp for schedule(static)") for (int o0 = 0; o0 < O; o0 += TILE) {                     \
                ELEMENT tile[TILE * MOST / sizeof(ELEMENT)] __attribute__((aligned(BYTES)));               \
                const int count = O - o0 < TILE ? O - o0 : TILE;                                           \
                for (int t = 0; t < room; t += vector)                                                     \
                    all_##NAME(g + t0 * g_stride + o0, g_stride, t, rows, count, tile, room);              \
                for (int j = 0; j < count; j++) {                                                          \
                    const ELEMENT *own = tile + j * room;                                                  \
                    const int32_t *chosen = index + (size_t)(o0 + j) * K;                                  \
                    float *sum = out + (size_t)(o0 + j) * K;                                               \
                    int k = 0;                                                                             \
                    for (; k + 4 <= K; k += 4) { /* four at once share the loads of g */                   \
                        const ELEMENT *a = columns + (size_t)chosen[k] * room;                             \
                        const ELEMENT *b = columns + (size_t)chosen[k + 1] * room;                         \
                        const ELEMENT *c = columns + (size_t)chosen[k + 2] * room;                         \
                        const ELEMENT *d = columns + (size_t)chosen[k + 3] * room;                         \
                        sums_t sa = NO_SUMS, sb = NO_SUMS, sc = NO_SUMS, sd = NO_SUMS;                     \
                        for (int t = 0; t < room; t += vector) {                                           \
                            sa = add_##NAME(sa, own + t, a + t);                                           \
                            sb = add_##NAME(sb, own + t, b + t);                                           \
                            sc = add_##NAME(sc, own + t, c + t);                                           \
                            sd = add_##NAME(sd, own + t, d + t);                                           \
                        }                                                                                  \
                        const float four[4] = {TOTAL(sa), TOTAL(sb), TOTAL(sc), TOTAL(sd)};                \
                        for (int n = 0; n < 4; n++) sum[k + n] = (t0 ? sum[k + n] : 0) + four[n];          \
                    }                                                                                      \
                    for (; k < K; k++) {                                                                   \
                        const ELEMENT *a = columns + (size_t)chosen[k] * room;                             \
                        sums_t sa = NO_SUMS;                                                               \
                        for (int t = 0; t < room; t += vector) sa = add_##NAME(sa, own + t, a + t);        \
                        sum[k] = (t0 ? sum[k] : 0) + TOTAL(sa);                                            \
                    }                                                                                      \
                }                                                                                          \
            }                                                                                              \
        }                                                                                                  \
    }

DEFINE(f32, float)
DEFINE(bf16, uint16_t)
