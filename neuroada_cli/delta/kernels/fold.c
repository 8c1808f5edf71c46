/* weight[o][index[o][k]] = round(base[o][k] + delta[o][k]), many layers in one call; without delta the base.
 * And the way back: base[o][k] = weight[o][index[o][k]].
 *
 * The sum is fp32, and rounding to bf16 is to nearest, ties to even: the same bits as fold.py's own form.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* One weight. It holds `outputs` neurons to a matrix, and matrices one after another; within one, neurons lie
 * `row` elements apart and their inputs `column` elements. narrow: elements of 16 bits, bf16 where they are summed.
 */
struct job {
    void *weight;
    const int32_t *index;
    void *base;
    const float *delta;
    int64_t neurons, k, outputs, matrix, row, column, narrow;
};

static inline float widened(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7FC0;
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

void fold(const struct job *jobs, int count) {
    _Pragma("omp parallel") for (int n = 0; n < count; n++) {
        const struct job j = jobs[n];
        _Pragma("omp for schedule(static) nowait") for (int64_t o = 0; o < j.neurons; o++) {
            const int64_t start = o / j.outputs * j.matrix + o % j.outputs * j.row;
            const int32_t *index = j.index + o * j.k;
            const float *delta = j.delta ? j.delta + o * j.k : NULL;
            if (j.narrow) {
                uint16_t *weight = (uint16_t *)j.weight + start;
                const uint16_t *base = (const uint16_t *)j.base + o * j.k;
                for (int64_t k = 0; k < j.k; k++)
                    weight[index[k] * j.column] = delta ? rounded(widened(base[k]) + delta[k]) : base[k];
            } else {
                float *weight = (float *)j.weight + start;
                const float *base = (const float *)j.base + o * j.k;
                for (int64_t k = 0; k < j.k; k++)
                    weight[index[k] * j.column] = delta ? base[k] + delta[k] : base[k];
            }
        }
    }
}

/* The entries of one weight, as they are: any type of 16 or 32 bits. */
void take(const struct job *job) {
    const struct job j = *job;
    _Pragma("omp parallel for schedule(static)") for (int64_t o = 0; o < j.neurons; o++) {
        const int64_t start = o / j.outputs * j.matrix + o % j.outputs * j.row;
        const int32_t *index = j.index + o * j.k;
        if (j.narrow) {
            const uint16_t *weight = (const uint16_t *)j.weight + start;
            uint16_t *base = (uint16_t *)j.base + o * j.k;
            for (int64_t k = 0; k < j.k; k++) base[k] = weight[index[k] * j.column];
        } else {
            const uint32_t *weight = (const uint32_t *)j.weight + start;
            uint32_t *base = (uint32_t *)j.base + o * j.k;
            for (int64_t k = 0; k < j.k; k++) base[k] = weight[index[k] * j.column];
        }
    }
}
