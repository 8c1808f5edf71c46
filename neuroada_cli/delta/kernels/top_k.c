/* The K entries of every row with the largest magnitude, ascending; of equal ones the lower column.
 *
 * Without its sign bit, an IEEE number's bits order like its magnitude, so all comparisons are of integers
 * (NaN and infinity come out on top, where the caller finds them). One pass over a row notes the largest
 * magnitude of every block of BLOCK columns; the best block has the best column. For more than one, the K-th
 * largest magnitude is looked for by halves: each tries a magnitude and counts how many are at least that large.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 32 /* as many as a word has bits: one for each column that is taken */

#if defined(__AVX512BW__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef uint16_t vector_16 __attribute__((vector_size(BYTES), may_alias));
typedef uint32_t vector_32 __attribute__((vector_size(BYTES), may_alias));

#define DEFINE(NAME, BITS, MAGNITUDE, MANTISSA)                                                                    \
    /* rank is the magnitude + 1, so that 0, what lies past the end, is less than all; all come in whole blocks */ \
    static inline BITS largest_##NAME(const BITS *rank, int length) {                                              \
        BITS best = 0;                                                                                             \
        for (int j = 0; j < length; j++) best = rank[j] > best ? rank[j] : best;                                   \
        return best;                                                                                               \
    }                                                                                                              \
                                                                                                                   \
    /* a bit for each of BLOCK ranks that is a value, and for each that is at least as large */                    \
    static inline uint32_t same_##NAME(const BITS *rank, BITS value) {                                             \
        uint32_t found = 0;                                                                                        \
        for (int j = 0; j < BLOCK; j++) found |= (uint32_t)(rank[j] == value) << j;                                \
        return found;                                                                                              \
    }                                                                                                              \
                                                                                                                   \
    static inline uint32_t least_##NAME(const BITS *rank, BITS value) {                                            \
        uint32_t found = 0;                                                                                        \
        for (int j = 0; j < BLOCK; j++) found |= (uint32_t)(rank[j] >= value) << j;                                \
        return found;                                                                                              \
    }                                                                                                              \
                                                                                                                   \
    /* where a value, which is there, stands first */                                                              \
    static inline int place_##NAME(const BITS *rank, BITS value) {                                                 \
        uint32_t same;                                                                                             \
        int j = 0;                                                                                                 \
        while (!(same = same_##NAME(rank + j, value))) j += BLOCK;                                                 \
        return j + __builtin_ctz(same);                                                                            \
    }                                                                                                              \
                                                                                                                   \
    /* how many ranks are at least a value */                                                                      \
    static inline int counted_##NAME(const BITS *rank, int length, BITS value) {                                   \
        enum { LANES = BYTES / sizeof(BITS), PARTS = BLOCK / LANES };                                              \
        vector_##NAME sum[PARTS] = {{0}};                                                                          \
        for (int j = 0; j < length; j += BLOCK)                                                                    \
            for (int part = 0; part < PARTS; part++)                                                               \
                sum[part] -= (vector_##NAME)(*(const vector_##NAME *)(rank + j + part * LANES) >= value);          \
        int found = 0;                                                                                             \
        for (int part = 0; part < PARTS; part++)                                                                   \
            for (int lane = 0; lane < LANES; lane++) found += sum[part][lane];                                     \
        return found;                                                                                              \
    }                                                                                                              \
                                                                                                                   \
    /* The largest value that at least K ranks reach, or one that exactly K do. *room: how many of those that are  \
     * just this value are among the first K. Begins from above, where the largest are near each other, in         \
     * steps of half an octave that double. */                                                                     \
    static inline BITS bound_##NAME(const BITS *rank, int length, int K, BITS low, BITS high, int *room) {         \
        BITS step = (BITS)1 << (MANTISSA - 1);                                                                     \
        int near = 1;                                                                                              \
        *room = K; /* less those above, of which none are known yet */                                             \
        while (high - low > 1) {                                                                                   \
            near = near && high - low > step;                                                                      \
            BITS tried = near ? high - step : low + (high - low) / 2;                                              \
            int found = counted_##NAME(rank, length, tried);                                                       \
            step *= 2;                                                                                             \
            if (found == K) {                                                                                      \
                *room = K;                                                                                         \
                return tried;                                                                                      \
            }                                                                                                      \
            if (found < K) high = tried, *room = K - found;                                                        \
            else low = tried, near = 0;                                                                            \
        }                                                                                                          \
        return low;                                                                                                \
    }                                                                                                              \
                                                                                                                   \
    static inline void many_##NAME(const BITS *rank, const BITS *top, int blocks, int padded, int K, BITS most, int32_t *column) {\
        const BITS highest = most + 1;                                                                             \
        BITS low = 1;                                                                                              \
        int room, k = 0, count = -1; /* not known */                                                               \
        if (blocks >= 2 * K) { /* K reach the K-th largest of the blocks' best, and mostly few more do */          \
            low = bound_##NAME(top, padded, K, low, highest, &room);                                               \
            count = counted_##NAME(rank, blocks * BLOCK, low);                                                     \
        }                                                                                                          \
        if (count < 0 || count > 4 * K + BLOCK) {                                                                  \
            low = bound_##NAME(rank, blocks * BLOCK, K, low, highest, &room);                                      \
            for (int b = 0; b < blocks && k < K; b++) {                                                            \
                if (top[b] < low) continue;                                                                        \
                uint32_t same = same_##NAME(rank + b * BLOCK, low);                                                \
                uint32_t taken = least_##NAME(rank + b * BLOCK, low) & ~same;                                      \
                for (; same && room; same &= same - 1, room--) taken |= same & -same;                              \
                for (; taken; taken &= taken - 1) column[k++] = b * BLOCK + __builtin_ctz(taken);                  \
            }                                                                                                      \
            return;                                                                                                \
        }                                                                                                          \
        const int length = (count + BLOCK - 1) / BLOCK * BLOCK; /* only these are looked at again */               \
        BITS held[length] __attribute__((aligned(64)));                                                            \
        int32_t from[length];                                                                                      \
        memset(held + count, 0, (size_t)(length - count) * sizeof *held);                                          \
        for (int b = 0, i = 0; b < blocks; b++) {                                                                  \
            if (top[b] < low) continue;                                                                            \
            for (uint32_t left = least_##NAME(rank + b * BLOCK, low); left; left &= left - 1, i++) {               \
                from[i] = b * BLOCK + __builtin_ctz(left);                                                         \
                held[i] = rank[from[i]];                                                                           \
            }                                                                                                      \
        }                                                                                                          \
        low = bound_##NAME(held, length, K, low, highest, &room);                                                  \
        for (int i = 0; k < K; i++)                                                                                \
            if (held[i] > low || (held[i] == low && room-- > 0)) column[k++] = from[i];                            \
    }                                                                                                              \
                                                                                                                   \
    /* returns the largest magnitude of all, which tells NaN and infinity */                                       \
    uint32_t top_k_##NAME(const BITS *weight, ptrdiff_t stride, int O, int I, int K, int32_t *index) {             \
        const int blocks = (I + BLOCK - 1) / BLOCK, padded = (blocks + BLOCK - 1) / BLOCK * BLOCK;                 \
        uint32_t largest = 1;                                                                                      \
        _Pragma("omp parallel for schedule(static) reduction(max : largest)") for (int o = 0; o < O; o++) {        \
            const BITS *row = weight + (ptrdiff_t)o * stride;                                                      \
            int32_t *column = index + (size_t)o * K;                                                               \
            BITS rank[blocks * BLOCK] __attribute__((aligned(64)));                                                \
            BITS top[padded] __attribute__((aligned(64)));                                                         \
            for (int i = 0; i < I; i++) rank[i] = (BITS)((row[i] & MAGNITUDE) + 1);                                \
            memset(rank + I, 0, (size_t)(blocks * BLOCK - I) * sizeof *rank);                                      \
            memset(top, 0, sizeof top);                                                                            \
            for (int b = 0; b < blocks; b++) top[b] = largest_##NAME(rank + b * BLOCK, BLOCK);                     \
            const BITS most = largest_##NAME(top, padded);                                                         \
            largest = most > largest ? most : largest;                                                             \
            if (K > 1) {                                                                                           \
                many_##NAME(rank, top, blocks, padded, K, most, column);                                           \
            } else {                                                                                               \
                int b = place_##NAME(top, most);                                                                   \
                column[0] = b * BLOCK + place_##NAME(rank + b * BLOCK, top[b]);                                    \
            }                                                                                                      \
        }                                                                                                          \
        return largest - 1;                                                                                        \
    }

DEFINE(16, uint16_t, 0x7FFF, 7) /* of bf16; fp16 takes smaller steps */
DEFINE(32, uint32_t, 0x7FFFFFFFu, 23)
