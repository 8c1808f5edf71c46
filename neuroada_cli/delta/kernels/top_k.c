/* The K entries of every row with the largest magnitude, ascending; of equal ones the lower column.
 *
 * Without its sign bit, an IEEE number's bits order like its magnitude, so all comparisons are of integers
 * (NaN and infinity come out on top, where the caller finds them). One pass over a row notes the largest
 * magnitude of every block of BLOCK columns; then K times the best block gives its best column, and only that
 * block is looked at again.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 32 /* as many as a word has bits: one for each column that was taken */

#define DEFINE(NAME, BITS, MAGNITUDE)                                                                      \
    /* rank is the magnitude + 1, so that 0 is less than all: what was taken, and what lies past the end */ \
    static inline BITS best_##NAME(const BITS *rank) {                                                     \
        BITS best = 0;                                                                                     \
        for (int j = 0; j < BLOCK; j++) best = rank[j] > best ? rank[j] : best;                            \
        return best;                                                                                       \
    }                                                                                                      \
                                                                                                           \
    static inline int place_##NAME(const BITS *rank, int count, BITS value) {                              \
        for (int j0 = 0; j0 < count; j0 += BLOCK) {                                                        \
            uint32_t same = 0;                                                                             \
            for (int j = 0; j < BLOCK; j++) same |= (uint32_t)(rank[j0 + j] == value) << j;                \
            if (same) return j0 + __builtin_ctz(same);                                                     \
        }                                                                                                  \
        return count; /* not reached: the caller has seen the value */                                     \
    }                                                                                                      \
                                                                                                           \
    static inline BITS largest_##NAME(const BITS *rank, int count) {                                       \
        BITS best = 0;                                                                                     \
        for (int j = 0; j < count; j++) best = rank[j] > best ? rank[j] : best;                            \
        return best;                                                                                       \
    }                                                                                                      \
                                                                                                           \
    /* scratch, for each thread `room` entries: the ranks of a row and the best of its blocks, both padded \
     * to whole blocks, and the bits of what was taken */                                                  \
    void top_k_##NAME(const BITS *weight, ptrdiff_t stride, int O, int I, int K, int32_t *index) {         \
        const int blocks = (I + BLOCK - 1) / BLOCK, padded = (blocks + BLOCK - 1) / BLOCK * BLOCK;         \
        _Pragma("omp parallel for schedule(static)") for (int o = 0; o < O; o++) {                         \
            const BITS *row = weight + (ptrdiff_t)o * stride;                                              \
            int32_t *column = index + (size_t)o * K;                                                       \
            BITS rank[blocks * BLOCK] __attribute__((aligned(64)));                                        \
            BITS top[padded] __attribute__((aligned(64)));                                                 \
            uint32_t taken[blocks];                                                                        \
            for (int i = 0; i < I; i++) rank[i] = (BITS)((row[i] & MAGNITUDE) + 1);                        \
            memset(rank + I, 0, (size_t)(blocks * BLOCK - I) * sizeof *rank);                              \
            memset(top, 0, sizeof top);                                                                    \
            memset(taken, 0, sizeof taken);                                                                \
            for (int b = 0; b < blocks; b++) top[b] = best_##NAME(rank + b * BLOCK);                       \
            for (int k = 0; k < K; k++) {                                                                  \
                BITS best = largest_##NAME(top, padded);                                                   \
                int b = place_##NAME(top, padded, best);                                                   \
                int j = place_##NAME(rank + b * BLOCK, BLOCK, best);                                       \
                taken[b] |= UINT32_C(1) << j;                                                              \
                rank[b * BLOCK + j] = 0;                                                                   \
                top[b] = best_##NAME(rank + b * BLOCK);                                                    \
            }                                                                                              \
            for (int b = 0, k = 0; k < K; b++)                                                             \
                for (uint32_t left = taken[b]; left; left &= left - 1)                                     \
                    column[k++] = b * BLOCK + __builtin_ctz(left);                                         \
        }                                                                                                  \
    }

DEFINE(16, uint16_t, 0x7FFF)
DEFINE(32, uint32_t, 0x7FFFFFFFu)
