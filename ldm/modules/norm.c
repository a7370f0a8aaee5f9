/* Group normalisation, and SiLU behind it where that is asked for, of maps whose channels lie last; norm.py
   says when it is taken. */

#include <math.h>
#include <stdlib.h>

#include "../freeu/numbers.h"

enum {
    BLOCK = 64,       /* positions that are summed in single precision */
    PART = 64 * 1024, /* numbers that a thread takes at a time */
};

struct maps {
    long batch, positions, channels, groups;
};

INLINE long min(long a, long b)
{
    return a < b ? a : b;
}

/* x / (1 + e^-x). */
INLINE float silu(float x)
{
    const uint32_t far = bits_of(126);   /* a power of two: one further away is as good as none or all */
    const float shift = 0x1.8p23f + 127; /* added, it leaves the exponent of that power in the lowest bits */
    uint32_t bits = bits_of(-1.44269504f * x), sign = bits & 1u << 31, size = bits - sign;
    float power = of_bits(sign | (size < far ? size : far));
    float shifted = power + shift, f = (power - (shifted - shift)) * 0.693147181f; /* log(2) of the rest */
    float series = 1 / 24.f + f * (1 / 120.f + f * (1 / 720.f));
    series = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * series)));
    return x / (1 + series * of_bits(bits_of(shifted) << 23));
}

/* Adds a part's numbers and their squares to the sums of their groups, (groups, 2). */
INLINE void add_known(const char *x, long positions, const struct maps *m, double *sums, int bfloat16)
{
    long channels = m->channels, each = channels / m->groups, size = bfloat16 ? 2 : 4;
    float plain[channels], squares[channels];
    for (long first = 0; first < positions; first += BLOCK) {
        memset(plain, 0, sizeof plain);
        memset(squares, 0, sizeof squares);
        for (long i = first; i < min(first + BLOCK, positions); i++) {
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                float number = get(x + i * channels * size, c, bfloat16);
                plain[c] += number;
                squares[c] += number * number;
            }
        }
        for (long c = 0; c < channels; c++) {
            sums[c / each * 2] += plain[c];
            sums[c / each * 2 + 1] += squares[c];
        }
    }
}

FOR_EACH_CPU static void add_part(const char *x, long positions, const struct maps *m, double *sums,
                                  int bfloat16)
{
    if (bfloat16)
        add_known(x, positions, m, sums, 1);
    else
        add_known(x, positions, m, sums, 0);
}

/* A part of y becomes scale (x - mean) + bias, or SiLU of that; how is (3, channels), in this order. */
INLINE void scale_known(const char *x, char *y, long positions, long channels, const float *how,
                        int then_silu, int bfloat16)
{
    for (long i = 0; i < positions; i++) {
        long at = i * channels * (bfloat16 ? 2 : 4);
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float number = how[c] * (get(x + at, c, bfloat16) - how[channels + c]) + how[2 * channels + c];
            put(y + at, c, then_silu ? silu(number) : number, bfloat16);
        }
    }
}

FOR_EACH_CPU static void scale_part(const char *x, char *y, long positions, long channels, const float *how,
                                    int then_silu, int bfloat16)
{
    if (then_silu && bfloat16)
        scale_known(x, y, positions, channels, how, 1, 1);
    else if (then_silu)
        scale_known(x, y, positions, channels, how, 1, 0);
    else if (bfloat16)
        scale_known(x, y, positions, channels, how, 0, 1);
    else
        scale_known(x, y, positions, channels, how, 0, 0);
}

/* How a sample's channels are scaled, given the sums of its groups, of `count` numbers each. */
static void find_scale(const struct maps *m, const double *sums, double count, const void *weight,
                       const void *bias, double eps, float *how, int bfloat16)
{
    long each = m->channels / m->groups;
    for (long c = 0; c < m->channels; c++) {
        how[c] = get(weight, c, bfloat16);
        how[2 * m->channels + c] = get(bias, c, bfloat16);
    }
    for (long g = 0; g < m->groups; g++) {
        double mean = sums[2 * g] / count, variance = sums[2 * g + 1] / count - mean * mean;
        double none = variance * 0; /* and not a number where that, or a sum of squares, is none */
        double over = 1 / sqrt((variance > 0 ? variance : 0) + none + eps);
        for (long c = g * each; c < (g + 1) * each; c++) {
            how[c] *= over;
            how[m->channels + c] = mean;
        }
    }
}

/* Adds the numbers of x, in float32 or bfloat16, and their squares to the sums of their groups, (batch,
   groups, 2). 0, or 1 where there is no memory and nothing is added. */
int add_sums(const char *x, const struct maps *m, double *sums, int bfloat16, int threads)
{
    long at_once = (PART + m->channels - 1) / m->channels, parts = (m->positions + at_once - 1) / at_once;
    long size = bfloat16 ? 2 : 4, pair = 2 * m->groups;
    double *all = calloc(m->batch * parts * pair, sizeof *all); /* each part's, so that their order is one */
    if (!all)
        return 1;
    if (m->batch * m->positions * m->channels < FEW)
        threads = 1;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < m->batch * parts; i++) {
        long first = i % parts * at_once, at = (i / parts * m->positions + first) * m->channels * size;
        add_part(x + at, min(at_once, m->positions - first), m, all + i * pair, bfloat16);
    }
    for (long i = 0; i < m->batch * parts; i++)
        for (long g = 0; g < pair; g++)
            sums[i / parts * pair + g] += all[i * pair + g];
    free(all);
    return 0;
}

/* y, which may be x, becomes x normalised by the sums of its groups, of `count` numbers each, or SiLU of
   that. */
void normalize(const char *x, char *y, const struct maps *m, const double *sums, double count,
               const void *weight, const void *bias, double eps, int then_silu, int bfloat16, int threads)
{
    long at_once = (PART + m->channels - 1) / m->channels, parts = (m->positions + at_once - 1) / at_once;
    long size = bfloat16 ? 2 : 4;
    if (m->batch * m->positions * m->channels < FEW)
        threads = 1;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < m->batch * parts; i++) {
        float how[3 * m->channels];
        long sample = i / parts, first = i % parts * at_once;
        find_scale(m, sums + sample * 2 * m->groups, count, weight, bias, eps, how, bfloat16);
        long at = (sample * m->positions + first) * m->channels * size;
        scale_part(x + at, y + at, min(at_once, m->positions - first), m->channels, how, then_silu, bfloat16);
    }
}
