/* Attention by a processor's vectors of LANES numbers; vectors.py says where it is taken.

   Scores are made transposed, a key down and a query across, so that all that is asked of a query's scores,
   their maximum, their weights and the sum of these, stays in its lane of a vector. */

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "lanes.h"

enum {
    ACROSS = 3,               /* vectors of queries that meet ... */
    DOWN = 4 * TOGETHER,      /* ... so many keys, or numbers of a value: enough sums that none is waited for */
    QUERIES = ACROSS * LANES, /* a block of them */
    KEYS = 128,               /* stay in a core's nearest cache, with their values, ... */
    BLOCKS = 4,               /* ... while so many blocks meet them */
};

/* The same in all of a token's numbers: they lie beside each other. */
struct strides {
    long batch, head, token;
};

struct layout {
    long batch, heads, n, m, d;
    struct strides q, k, v, out;
};

/* A block of queries and what they have of the keys that they met: the greatest score, also as a power of
   two, and the sums of weights and of values times weights. */
struct block {
    factors *queries; /* (d / TOGETHER, QUERIES) */
    lanes *sums;      /* (d, QUERIES) */
    lanes greatest[ACROSS], power[ACROSS], total[ACROSS];
    bits far; /* whether a power was too far from zero for what it is rounded to, though finite */
};

/* Makes (DOWN, QUERIES), or adds to it, the product of (DOWN, count), whose factors lie so far apart, and of
   (count, QUERIES). */
INLINE void multiply(lanes (*to)[ACROSS], const factor *a, long down, long along, const factors *b,
                     long count, int add)
{
    lanes sums[DOWN][ACROSS] = {0};
#pragma GCC unroll 4
    for (long k = 0; k < count; k++)
        for (long i = 0; i < DOWN; i++)
            for (long j = 0; j < ACROSS; j++)
                add_product(&sums[i][j], a[i * down + k * along], b + k * ACROSS + j);
    for (long i = 0; i < DOWN; i++)
        for (long j = 0; j < ACROSS; j++)
            to[i][j] = add ? to[i][j] + sums[i][j] : sums[i][j];
}

/* x becomes 2^x, for x up to 0 or what that is rounded to. What is not a number stays. */
INLINE void raise_two(lanes *x)
{
    const lanes smallest = (lanes){0} - 126;
    const float shift = 0x1.8p23f + 127; /* added, it leaves the exponent of 2^x in the lowest bits */
    raise_to(x, &smallest);
    lanes shifted = *x + shift, f = (*x - (shifted - shift)) * 0.693147181f; /* log(2) of the rest */
    lanes series = (lanes){0} + 1 / 24.f;
    if (TOGETHER == 1) /* bfloat16 would not show the rest. */
        series += f * (1 / 120.f + f * (1 / 720.f));
    series = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * series)));
    *x = series * (lanes)((bits)shifted << 23);
}

/* Makes weights, (count, ACROSS), factors where they are, (count / TOGETHER, ACROSS). Behind the last lies the
   score of a key of zeros, which is zero. */
INLINE factors *turn_to_factors(lanes (*weights)[ACROSS], long count)
{
    factors *to = (factors *)weights;
    for (long i = 0; i < count; i += TOGETHER)
        for (long j = 0; j < ACROSS; j++)
            to[i / TOGETHER * ACROSS + j] = as_factors(weights[i] + j, ACROSS);
    return to;
}

/* A block of queries meets up to KEYS keys, (count, d / TOGETHER), and their values, (count / TOGETHER, d).
   Weights are powers of two, of `scale` times the score. */
INLINE void meet(struct block *block, const factor *keys, const factor *values, long count, long d,
                 float scale)
{
    lanes weights[KEYS][ACROSS], power[ACROSS], total[ACROSS] = {0}; /* weights are scores at first */
    long depth = d / TOGETHER;
    for (long first = 0; first < count; first += DOWN) {
        multiply(weights + first, keys + first * depth, depth, 1, block->queries, depth, 0);
        for (long i = first; i < min(first + DOWN, count); i++)
            for (long j = 0; j < ACROSS; j++)
                raise_to(block->greatest + j, weights[i] + j);
    }
    for (long j = 0; j < ACROSS; j++) {
        power[j] = scale * block->greatest[j];
        block->far |= (bits)(power[j] < -(1 << 23)) & (bits)(power[j] > -INFINITY);
        block->far |= (bits)(power[j] > 1 << 23) & (bits)(power[j] < INFINITY);
    }
    for (long i = 0; i < count; i++)
        for (long j = 0; j < ACROSS; j++) {
            weights[i][j] = scale * weights[i][j] - power[j];
            raise_two(weights[i] + j);
            total[j] += weights[i][j];
        }
    /* What there was had a smaller score as its greatest. */
    for (long j = 0; j < ACROSS; j++) {
        lanes shrunk = block->power[j] - power[j];
        raise_two(&shrunk);
        block->total[j] = shrunk * block->total[j] + total[j];
        block->power[j] = power[j];
        for (long i = 0; i < d; i++)
            block->sums[i * ACROSS + j] *= shrunk;
    }
    const factors *factors = turn_to_factors(weights, count);
    for (long i = 0; i < d; i += DOWN)
        multiply((lanes(*)[ACROSS])block->sums + i, values + i, 1, d, factors, parts_of(count, TOGETHER), 1);
}

/* A number as it is given, rounded to nearest. */
INLINE number rounded(float x)
{
#ifdef BFLOAT16
    uint32_t all;
    memcpy(&all, &x, sizeof x);
    return (all + 0x7fff + (all >> 16 & 1)) >> 16;
#else
    return x;
#endif
}

/* Attention of up to BLOCKS * QUERIES of a head's queries on its keys, packed like their values. Tells whether
   scores were too far from zero. */
static int attend(const struct layout *l, const number *q, const factor *keys, const factor *values,
                  number *out, long some, float scale, lanes *room)
{
    struct block blocks[BLOCKS];
    long count = parts_of(some, QUERIES), d = l->d;
    memset(room, 0, count * 2 * d * QUERIES * sizeof(float));
    for (long b = 0; b < count; b++) {
        struct block *block = blocks + b;
        block->far = (bits){0};
        block->sums = room + 2 * b * d * ACROSS;
        block->queries = (factors *)(block->sums + d * ACROSS);
        for (long j = 0; j < ACROSS; j++) {
            block->greatest[j] = block->power[j] = (lanes){0} - INFINITY;
            block->total[j] = (lanes){0};
        }
        factor *to = (factor *)block->queries;
        for (long i = 0; i < min(QUERIES, some - b * QUERIES); i += 4) { /* so many are written at once */
            const number *from[4];
            for (long j = 0; j < 4; j++)
                from[j] = q + min(b * QUERIES + i + j, some - 1) * l->q.token;
            for (long k = 0; k < d / TOGETHER; k++)
                for (long j = 0; j < 4; j++)
                    memcpy(to + k * QUERIES + i + j, from[j] + k * TOGETHER, sizeof *to);
        }
    }
    for (long first = 0; first < l->m; first += KEYS)
        for (long b = 0; b < count; b++) {
            long before = first / TOGETHER * d;
            meet(blocks + b, keys + before, values + before, min(KEYS, l->m - first), d, scale);
        }
    int far = 0;
    for (long i = 0; i < some; i++) {
        const struct block *block = blocks + i / QUERIES;
        far |= block->far[i % LANES] != 0;
        for (long k = 0; k < d; k++)
            out[i * l->out.token + k] = rounded(((float *)block->sums)[k * QUERIES + i % QUERIES] /
                                                ((float *)block->total)[i % QUERIES]);
    }
    return far;
}

/* A head's tokens side by side, so many of them together, and zeros behind them, as the last keys may be
   fewer than DOWN. */
static void pack(number *to, const number *from, const struct strides *strides, long m, long d, long together)
{
    memset(to + m / together * together * d, 0, (DOWN + together - 1) * d * sizeof(number));
    for (long i = 0; i < m; i++)
        for (long k = 0; k < d; k++)
            to[(i / together * d + k) * together + i % together] = from[i * strides->token + k];
}

static void pack_keys(number *to, const number *k, const struct layout *l, long head)
{
    pack(to, k + head / l->heads * l->k.batch + head % l->heads * l->k.head, &l->k, l->m, l->d, 1);
}

static void pack_values(number *to, const number *v, const struct layout *l, long head)
{
    pack(to, v + head / l->heads * l->v.batch + head % l->heads * l->v.head, &l->v, l->m, l->d, TOGETHER);
}

/* softmax(scale q k^T) v for (batch, heads, n, d) queries and (batch, heads, m, d) keys and values; d is a
   whole number of DOWN.

   0, or why `out` is not that: 1, there is no memory; 2, scores are too large. */
int attention(const number *q, const number *k, const number *v, number *out, const struct layout *l,
              float scale, int threads)
{
    /* Threads take whole heads if these come out even, and pack the keys of each as they come to it; else they
       take parts of heads, whose keys are packed before. */
    long heads = l->batch * l->heads, parts = heads % threads ? parts_of(3 * threads, heads) : 1;
    long part = parts_of(parts_of(l->n, parts), QUERIES) * QUERIES;
    int before = parts > 1;
    parts = parts_of(l->n, part);

    long room = BLOCKS * 2 * l->d * QUERIES; /* for a thread's blocks */
    long tokens = (l->m + DOWN + TOGETHER - 1) * l->d, packed = before ? heads : threads;
    long bytes = threads * room * sizeof(float) + packed * 2 * tokens * sizeof(number);
    float *memory = aligned_alloc(64, parts_of(bytes, 64) * 64);
    if (!memory)
        return 1;
    number *all = (number *)(memory + threads * room);
    int far = 0;
#pragma omp parallel num_threads(threads) reduction(| : far)
    {
        if (before) {
#pragma omp for schedule(dynamic)
            for (long i = 0; i < 2 * heads; i++)
                if (i % 2)
                    pack_values(all + i * tokens, v, l, i / 2);
                else
                    pack_keys(all + i * tokens, k, l, i / 2);
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < heads * parts; i++) {
            long thread = omp_get_thread_num(), batch = i / parts / l->heads, head = i / parts % l->heads;
            long start = i % parts * part, end = min(start + part, l->n);
            number *keys = all + (before ? i / parts : thread) * 2 * tokens, *values = keys + tokens;
            if (!before) {
                pack_keys(keys, k, l, i);
                pack_values(values, v, l, i);
            }
            for (long j = start; j < end; j += BLOCKS * QUERIES)
                far |= attend(l, q + batch * l->q.batch + head * l->q.head + j * l->q.token, (factor *)keys,
                              (factor *)values,
                              out + batch * l->out.batch + head * l->out.head + j * l->out.token,
                              min(end - j, BLOCKS * QUERIES), scale * 1.44269504f /* log2(e) */,
                              (lanes *)(memory + thread * room));
        }
    }
    free(memory);
    return far ? 2 : 0;
}
