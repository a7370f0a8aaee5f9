/* Attention in float32 by a processor's vectors; vectors.py says where it is taken.

   Scores are made transposed, a key down and a query across, so that all that is asked of a query's scores,
   their maximum, their weights and the sum of these, stays in its lane of a vector. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One form for each generation of processors, of which the loader of the library takes the newest. */
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v3", "default")))
#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 8,
    ACROSS = 3,               /* vectors of queries that meet ... */
    DOWN = 4,                 /* ... so many keys, or numbers of a value: the sums fill the registers */
    QUERIES = ACROSS * LANES, /* a block of them */
    KEYS = 128,               /* stay in a core's nearest cache, with their values, ... */
    BLOCKS = 4,               /* ... while so many blocks meet them */
};

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

/* The same in all of a token's numbers: they lie beside each other. */
struct strides {
    long batch, head, token;
};

struct layout {
    long batch, heads, n, m, d;
    struct strides q, k, v, out;
};

/* A block of queries and what they have of the keys that they met: the greatest score, and the sums of
   weights and of values times weights. */
struct block {
    lanes *queries, *sums; /* (d, QUERIES) */
    lanes greatest[ACROSS], total[ACROSS];
};

INLINE long min(long a, long b)
{
    return a < b ? a : b;
}

INLINE long parts_of(long count, long of)
{
    return (count + of - 1) / of;
}

/* Adds to (DOWN, QUERIES) the product of (DOWN, count), whose numbers lie so far apart, and of
   (count, QUERIES). */
INLINE void multiply(lanes (*to)[ACROSS], const float *a, long down, long along, const lanes *b, long count)
{
    lanes sums[DOWN][ACROSS] = {0};
#pragma GCC unroll 4
    for (long k = 0; k < count; k++)
        for (long i = 0; i < DOWN; i++)
            for (long j = 0; j < ACROSS; j++)
                sums[i][j] += a[i * down + k * along] * b[k * ACROSS + j];
    for (long i = 0; i < DOWN; i++)
        for (long j = 0; j < ACROSS; j++)
            to[i][j] += sums[i][j];
}

/* Numbers become those that are not below them; what is not a number stays. */
INLINE void raise_to(lanes *x, const lanes *least)
{
    bits below = *x < *least;
    *x = (lanes)(((bits)*least & below) | ((bits)*x & ~below));
}

/* x becomes 2^x, for x up to 0. What is not a number stays. */
INLINE void raise_two(lanes *x)
{
    const lanes smallest = (lanes){0} - 126;
    const float shift = 0x1.8p23f + 127; /* added, it leaves the exponent of 2^x in the lowest bits */
    raise_to(x, &smallest);
    lanes shifted = *x + shift, f = (*x - (shifted - shift)) * 0.693147181f; /* log(2) of the rest */
    lanes series = 1 / 24.f + f * (1 / 120.f + f * (1 / 720.f));
    series = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * series)));
    *x = series * (lanes)((bits)shifted << 23);
}

/* A block of queries meets up to KEYS keys, (count, d) like their values. */
INLINE void meet(struct block *block, const float *keys, const float *values, long count, long d)
{
    lanes weights[KEYS][ACROSS] = {0}, scale[ACROSS], total[ACROSS] = {0}; /* weights are scores at first */
    memcpy(scale, block->greatest, sizeof scale);
    for (long i = 0; i < count; i += DOWN)
        multiply(weights + i, keys + i * d, d, 1, block->queries, d);
    for (long i = 0; i < count; i++)
        for (long j = 0; j < ACROSS; j++)
            raise_to(block->greatest + j, weights[i] + j);
    for (long i = 0; i < count; i++)
        for (long j = 0; j < ACROSS; j++) {
            weights[i][j] -= block->greatest[j];
            raise_two(weights[i] + j);
            total[j] += weights[i][j];
        }
    /* What there was had a smaller score as its greatest. */
    for (long j = 0; j < ACROSS; j++) {
        scale[j] -= block->greatest[j];
        raise_two(scale + j);
        block->total[j] = scale[j] * block->total[j] + total[j];
    }
    for (long i = 0; i < d; i += DOWN) {
        lanes (*sums)[ACROSS] = (lanes (*)[ACROSS])block->sums + i;
        for (long k = 0; k < DOWN; k++)
            for (long j = 0; j < ACROSS; j++)
                sums[k][j] *= scale[j];
        multiply(sums, values + i, 1, d, weights[0], count);
    }
}

/* Attention of up to BLOCKS * QUERIES of a head's queries on its keys, (m, d) like their values. */
FOR_EACH_CPU static void attend(const struct layout *l, const float *q, const float *keys,
                                const float *values, float *out, long some, float scale, lanes *room)
{
    struct block blocks[BLOCKS];
    long count = parts_of(some, QUERIES), d = l->d;
    memset(room, 0, count * 2 * d * QUERIES * sizeof(float));
    for (long b = 0; b < count; b++) {
        struct block *block = blocks + b;
        block->queries = room + 2 * b * d * ACROSS;
        block->sums = block->queries + d * ACROSS;
        for (long j = 0; j < ACROSS; j++) {
            block->greatest[j] = (lanes){0} - INFINITY;
            block->total[j] = (lanes){0};
        }
        for (long i = b * QUERIES; i < min(some, (b + 1) * QUERIES); i++)
            for (long k = 0; k < d; k++)
                ((float *)block->queries)[k * QUERIES + i % QUERIES] = scale * q[i * l->q.token + k];
    }
    for (long first = 0; first < l->m; first += KEYS)
        for (long b = 0; b < count; b++)
            meet(blocks + b, keys + first * d, values + first * d, min(KEYS, l->m - first), d);
    for (long i = 0; i < some; i++) {
        const struct block *block = blocks + i / QUERIES;
        for (long k = 0; k < d; k++)
            out[i * l->out.token + k] =
                ((float *)block->sums)[k * QUERIES + i % QUERIES] / ((float *)block->total)[i % QUERIES];
    }
}

/* A head's tokens side by side, and zeros behind them, as the last keys may be fewer than DOWN. */
static void pack(float *to, const float *from, const struct strides *strides, long m, long d)
{
    for (long i = 0; i < m; i++)
        memcpy(to + i * d, from + i * strides->token, d * sizeof(float));
    memset(to + m * d, 0, DOWN * d * sizeof(float));
}

/* softmax(scale q k^T) v for (batch, heads, n, d) queries and (batch, heads, m, d) keys and values; d is a
   whole number of DOWN. 0, or 1 where there is no memory and `out` is not that. */
int attention(const float *q, const float *k, const float *v, float *out, const struct layout *l, float scale,
              int threads)
{
    /* Threads take whole heads if these come out even, and else parts, for each of which keys are packed
       anew. */
    long heads = l->batch * l->heads, parts = heads % threads ? parts_of(3 * threads, heads) : 1;
    long part = parts_of(parts_of(l->n, parts), QUERIES) * QUERIES;
    parts = parts_of(l->n, part);

    long tokens = (l->m + DOWN) * l->d, room = BLOCKS * 2 * l->d * QUERIES;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(max : failed)
    {
        float *memory = aligned_alloc(64, parts_of(4 * (room + 2 * tokens), 64) * 64);
        float *keys = memory + room, *values = keys + tokens;
        failed = !memory;
#pragma omp for schedule(dynamic)
        for (long i = 0; i < heads * parts; i++) {
            if (!memory)
                continue;
            long batch = i / parts / l->heads, head = i / parts % l->heads;
            long start = i % parts * part, end = min(start + part, l->n);
            pack(keys, k + batch * l->k.batch + head * l->k.head, &l->k, l->m, l->d);
            pack(values, v + batch * l->v.batch + head * l->v.head, &l->v, l->m, l->d);
            for (long j = start; j < end; j += BLOCKS * QUERIES)
                attend(l, q + batch * l->q.batch + head * l->q.head + j * l->q.token, keys, values,
                       out + batch * l->out.batch + head * l->out.head + j * l->out.token,
                       min(end - j, BLOCKS * QUERIES), scale * 1.44269504f /* log2(e) */, (lanes *)memory);
        }
        free(memory);
    }
    return failed;
}
