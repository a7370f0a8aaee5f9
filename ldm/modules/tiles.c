/* Attention in bfloat16 by the tiles (AMX) of an Intel processor; tiles.py says where it is taken.

   Scores are made transposed, a key down and a query across, so that all that is asked of a query's scores,
   their maximum, their weights and the sum of these, stays in its lane of a vector. A tile is 16 rows of 64
   bytes: 16 x 16 numbers in float32 or, as a factor of a product, 16 x 32 in bfloat16. A left factor lies as it
   reads; a row of a right one holds pairs, neighbours along the axis that is summed. So keys are left factors
   as they are; queries are turned, a block of them at a time, and so are values, once a head. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;

enum {
    TILE = 512,    /* numbers in bfloat16; in float32 half as many */
    STEP = 32,     /* keys and queries that meet at a time: two tiles of each */
    KEYS = 64,     /* that stay in a core's nearest cache, with their values and weights, ... */
    QUERIES = 128, /* ... while so many queries meet them */
};

/* The same in all of a token's numbers: they lie beside each other. */
struct strides {
    long batch, head, token;
};

struct layout {
    long batch, heads, n, m, d;
    struct strides q, k, v, out;
};

/* What a thread works on. */
struct work {
    bf16 *keys, *values;                             /* of a head */
    bf16 *queries, *weights;                         /* a block of queries, and 32 of these on some keys */
    float *scores, *sums;                            /* before they are weights; of values times weights */
    __m512 shift[QUERIES / 16], total[QUERIES / 16]; /* of a query's scores in powers of two; its weights' sum */
    __m512i largest;                                 /* of all numbers read, as bits without their sign */
    int far;                                         /* whether scores lie too far from zero for `fixed` */
};

static const unsigned LARGE = (127 + 59) << 7; /* 2^59 in bfloat16: products of what is below stay finite */

static inline long min(long a, long b) { return a < b ? a : b; }

static inline long blocks(long count, long of) { return (count + of - 1) / of; }

/* Up to 32 numbers, and zeros for those that there are not. */
static inline __m512i take(struct work *w, const bf16 *from, long count)
{
    __mmask32 there = count < 32 ? (1u << count) - 1 : ~0u;
    __m512i x = _mm512_maskz_loadu_epi16(there, from);
    w->largest = _mm512_max_epu16(w->largest, _mm512_and_si512(x, _mm512_set1_epi16(0x7fff)));
    return x;
}

/* Makes rows of 16 x 16 numbers of 32 bits columns: blocks of 8 x 8 change places first, and single ones last. */
static inline void transpose(__m512i row[16])
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
    for (int size = 8; size; size /= 2) {
        __mmask16 right = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(size));
        __m512i upper = _mm512_mask_add_epi32(lane, right, lane, _mm512_set1_epi32(16 - size));
        __m512i lower = _mm512_add_epi32(lane, _mm512_set1_epi32(size));
        lower = _mm512_mask_add_epi32(lower, right, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (i & size)
                continue;
            __m512i a = row[i], b = row[i + size];
            row[i] = _mm512_permutex2var_epi32(a, upper, b);
            row[i + size] = _mm512_permutex2var_epi32(a, lower, b);
        }
    }
}

static inline void store_rows(bf16 *to, const __m512i row[16])
{
    for (int i = 0; i < 16; i++)
        _mm512_store_si512(to + 32 * i, row[i]);
}

/* Keys as left factors, (m / 16, d / 32) tiles of 16 keys x 32 numbers. */
static void pack_keys(struct work *w, const bf16 *k, long stride, long m, long d)
{
    bf16 *to = w->keys;
    for (long start = 0; start < blocks(m, STEP) * STEP; start += 16)
        for (long i = 0; i < d; i += 32)
            for (long key = start; key < start + 16; key++, to += 32)
                _mm512_store_si512(to, take(w, k + key * stride + i, key < m ? d - i : 0));
}

/* Values as left factors, (m / 32, d / 16) tiles of 16 numbers x 32 keys. */
static void pack_values(struct work *w, const bf16 *v, long stride, long m, long d)
{
    bf16 *to = w->values;
    for (long start = 0; start < m; start += STEP)
        for (long i = 0; i < d; i += 16, to += TILE) {
            __m512i row[16], pair[2];
            for (int j = 0; j < 16; j++) {
                for (int odd = 0; odd < 2; odd++) {
                    long key = start + 2 * j + odd;
                    __m512i x = take(w, v + key * stride + i, key < m ? min(d - i, 16) : 0);
                    pair[odd] = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
                }
                row[j] = _mm512_or_si512(pair[0], _mm512_slli_epi32(pair[1], 16));
            }
            transpose(row);
            store_rows(to, row);
        }
}

/* Queries as right factors, (n / 32, d / 32, 2) tiles of 16 pairs of numbers x 16 queries. */
static void pack_queries(struct work *w, const bf16 *q, long stride, long n, long d)
{
    bf16 *to = w->queries;
    for (long start = 0; start < n; start += STEP)
        for (long i = 0; i < d; i += 32)
            for (long half = start; half < start + STEP; half += 16, to += TILE) {
                __m512i row[16];
                for (long j = 0; j < 16; j++)
                    row[j] = take(w, q + (half + j) * stride + i, half + j < n ? d - i : 0);
                transpose(row);
                store_rows(to, row);
            }
}

/* The scores of 32 queries on 32 keys, (2, 2) tiles of 16 keys x 16 queries; only `there` of the keys are. */
static inline void score(const bf16 *keys, const bf16 *queries, float *scores, long depth, long there)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long i = 0; i < depth; i++) {
        _tile_loadd(4, keys + i * TILE, 64);
        _tile_loadd(6, queries + 2 * i * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, queries + (2 * i + 1) * TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, keys + (depth + i) * TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, scores, 64);
    _tile_stored(1, scores + 256, 64);
    _tile_stored(2, scores + 512, 64);
    _tile_stored(3, scores + 768, 64);
    for (long key = there; key < STEP; key++)
        for (int half = 0; half < 2; half++)
            _mm512_store_ps(scores + key / 16 * 512 + half * 256 + key % 16 * 16, _mm512_set1_ps(-INFINITY));
}

/* The highest of some keys' scores for each of 16 queries. */
static inline __m512 highest(const float *scores, long steps)
{
    __m512 even = _mm512_set1_ps(-INFINITY), odd = even;
    for (long half = 0; half < 2 * steps; half++, scores += 512)
        for (int key = 0; key < 16; key += 2) {
            even = _mm512_max_ps(even, _mm512_load_ps(scores + 16 * key));
            odd = _mm512_max_ps(odd, _mm512_load_ps(scores + 16 * key + 16));
        }
    return _mm512_max_ps(even, odd);
}

/* Added to a number in float32, it leaves that rounded to a whole one in the last bits. */
static const float WHOLE = 3 << 22;

/* 128 (x + 127), for scores that scale and shift make x, in the lower 16 bits of 32; 0 if it is below that. */
static inline __m512i fixed(const float *scores, __m512 scale, __m512 shift)
{
    __m512 x = _mm512_fmadd_ps(_mm512_load_ps(scores), scale, shift);
    return _mm512_castps_si512(_mm512_max_ps(x, _mm512_set1_ps(WHOLE)));
}

/* By how many of the last digits of a bfloat16 2^f is below 1 + f, for pairs of f = 0, 1/128 ... 127/128. */
static uint8_t SAG[64] __attribute__((aligned(64)));

__attribute__((constructor)) static void make_sag(void)
{
    for (int i = 0; i < 64; i++) {
        double f = (2 * i + 0.5) / 128;
        SAG[i] = (uint8_t)lrint(128 * (1 + f - exp2(f)));
    }
}

/* The weights of 16 queries for some keys, in pairs of keys, and for each query what they sum to.

   The bits of 128 (x + 127) are those of 2^x in bfloat16, were 2^f a straight line between whole numbers. */
static inline __m512 weigh(const float *scores, bf16 *weights, long steps, float scale, __m512 shift)
{
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    const __m512i sag = _mm512_load_si512(SAG);
    const __m512 by = _mm512_set1_ps(128 * scale);
    const __m512 from = _mm512_fnmadd_ps(shift, _mm512_set1_ps(128), _mm512_set1_ps(WHOLE + 128 * 127));
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (long half = 0; half < 2 * steps; half++, scores += 512)
        for (int key = 0; key < 16; key += 2) {
            __m512i even = fixed(scores + 16 * key, by, from), odd = fixed(scores + 16 * key + 16, by, from);
            __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
            __m512i less = _mm512_maskz_permutexvar_epi8(0x5555555555555555, _mm512_srli_epi16(pair, 1), sag);
            pair = _mm512_sub_epi16(pair, less);
            total[key / 2 % 2] = _mm512_dpbf16_ps(total[key / 2 % 2], (__m512bh)pair, ones);
            _mm512_store_si512(weights + half / 2 * 2 * TILE + (half % 2 * 8 + key / 2) * 32, pair);
        }
    return _mm512_add_ps(total[0], total[1]);
}

/* Adds values times weights of 32 queries to sums, for 16, 32 or 48 of a value's numbers. */
static inline __attribute__((always_inline)) void
add(float *sums, const bf16 *values, const bf16 *weights, long steps, long width, const int tiles)
{
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    if (tiles > 1) {
        _tile_loadd(2, sums + 512, 64);
        _tile_loadd(3, sums + 768, 64);
    }
    if (tiles > 2) {
        _tile_loadd(4, sums + 1024, 64);
        _tile_loadd(5, sums + 1280, 64);
    }
    for (long i = 0; i < steps; i++, values += width * TILE, weights += 2 * TILE) {
        _tile_loadd(7, weights, 64);
        _tile_loadd(6, values, 64);
        _tile_dpbf16ps(0, 6, 7);
        if (tiles > 1) {
            _tile_loadd(6, values + TILE, 64);
            _tile_dpbf16ps(2, 6, 7);
        }
        if (tiles > 2) {
            _tile_loadd(6, values + 2 * TILE, 64);
            _tile_dpbf16ps(4, 6, 7);
        }
        _tile_loadd(7, weights + TILE, 64);
        if (tiles > 2)
            _tile_dpbf16ps(5, 6, 7);
        if (tiles > 1) {
            _tile_loadd(6, values + TILE, 64);
            _tile_dpbf16ps(3, 6, 7);
            _tile_loadd(6, values, 64);
        }
        _tile_dpbf16ps(1, 6, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    if (tiles > 1) {
        _tile_stored(2, sums + 512, 64);
        _tile_stored(3, sums + 768, 64);
    }
    if (tiles > 2) {
        _tile_stored(4, sums + 1024, 64);
        _tile_stored(5, sums + 1280, 64);
    }
}

/* Makes way for scores up to `top`: a query's shift follows them, and what was summed by the old one with it. */
static void move_shift(struct work *w, long half, __m512 top, float *sums, long width)
{
    __m512 now = _mm512_max_ps(_mm512_ceil_ps(top), w->shift[half]);
    __m512 change = _mm512_scalef_ps(_mm512_set1_ps(1), _mm512_sub_ps(w->shift[half], now));
    w->far |= _mm512_cmp_ps_mask(_mm512_abs_ps(now), _mm512_set1_ps(1 << 23), _CMP_NLT_UQ);
    w->shift[half] = now;
    w->total[half] = _mm512_mul_ps(w->total[half], change);
    for (long i = 0; i < width; i++)
        for (float *row = sums + 512 * i; row < sums + 512 * i + 256; row += 16)
            _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), change));
}

/* 32 queries meet up to 64 keys from `start` on. */
static void meet(struct work *w, long group, long start, const struct layout *l, float scale)
{
    long depth = blocks(l->d, 32), width = blocks(l->d, 16), steps = blocks(min(l->m - start, KEYS), STEP);
    const bf16 *keys = w->keys + start / 16 * depth * TILE, *values = w->values + start / 32 * width * TILE;
    float *sums = w->sums + group * width * 512;
    __asm__ volatile("" ::: "memory"); /* tiles read what was written above, which not all compilers see */
    for (long i = 0; i < steps; i++)
        score(keys + i * 2 * depth * TILE, w->queries + group * 2 * depth * TILE, w->scores + i * 1024, depth,
              l->m - start - i * STEP);
    for (int of = 0; of < 2; of++) {
        long half = 2 * group + of;
        __m512 top = _mm512_mul_ps(highest(w->scores + of * 256, steps), _mm512_set1_ps(scale));
        /* While no weight is above 2^8 the shift is left as it is. */
        if (_mm512_cmp_ps_mask(top, _mm512_add_ps(w->shift[half], _mm512_set1_ps(8)), _CMP_NLE_UQ))
            move_shift(w, half, top, sums + of * 256, width);
        __m512 total = weigh(w->scores + of * 256, w->weights + of * TILE, steps, scale, w->shift[half]);
        w->total[half] = _mm512_add_ps(w->total[half], total);
    }
    __asm__ volatile("" ::: "memory");
    for (long i = 0; i < width; i += 3)
        switch (min(width - i, 3)) {
        case 1: add(sums + i * 512, values + i * TILE, w->weights, steps, width, 1); break;
        case 2: add(sums + i * 512, values + i * TILE, w->weights, steps, width, 2); break;
        case 3: add(sums + i * 512, values + i * TILE, w->weights, steps, width, 3); break;
        }
}

/* Sums by the weights' total, turned back and rounded. */
static void write_out(struct work *w, bf16 *out, long stride, long n, long d)
{
    long width = blocks(d, 16);
    for (long start = 0; start < n; start += 16) {
        __m512 share = _mm512_div_ps(_mm512_set1_ps(1), w->total[start / 16]);
        for (long i = 0; i < width; i++) {
            const float *sums = w->sums + (start / 32 * width + i) * 512 + start / 16 % 2 * 256;
            __mmask16 there = (1u << min(d - 16 * i, 16)) - 1;
            __m512i row[16];
            for (int j = 0; j < 16; j++)
                row[j] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(sums + 16 * j), share));
            transpose(row);
            for (long j = 0; j < min(n - start, 16); j++) {
                __m256bh x = _mm512_cvtneps_pbh(_mm512_castsi512_ps(row[j]));
                _mm256_mask_storeu_epi16(out + (start + j) * stride + 16 * i, there, (__m256i)x);
            }
        }
    }
}

/* A block of n queries meets all keys. */
static void attend(struct work *w, const struct layout *l, const bf16 *q, bf16 *out, long n, float scale)
{
    long groups = blocks(n, STEP), width = blocks(l->d, 16);
    pack_queries(w, q, l->q.token, n, l->d);
    for (long i = 0; i < groups * width * 512; i += 16)
        _mm512_store_ps(w->sums + i, _mm512_setzero_ps());
    for (long i = 0; i < 2 * groups; i++) {
        w->shift[i] = _mm512_set1_ps(-INFINITY);
        w->total[i] = _mm512_setzero_ps();
    }
    for (long start = 0; start < l->m; start += KEYS)
        for (long group = 0; group < groups; group++)
            meet(w, group, start, l, scale);
    write_out(w, out, l->out.token, n, l->d);
}

static void configure_tiles(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        tiles.bytes[i] = 64;
        tiles.rows[i] = 16;
    }
    __asm__ volatile("" ::"r"(&tiles) : "memory");
    _tile_loadconfig(&tiles);
}

/* softmax(scale q k^T) v for (batch, heads, n, d) queries and (batch, heads, m, d) keys and values.

   0, or why `out` is not that: 1, the system grants no tiles; 2, there is no memory; 3, numbers are not finite
   or too large. */
int attention(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, const struct layout *l, float scale,
              int threads)
{
    const int ask = 0x1023, tiles = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    if (syscall(SYS_arch_prctl, ask, tiles))
        return 1;

    /* Threads take whole heads if these come out even, and else parts, for each of which keys are packed anew. */
    long heads = l->batch * l->heads, parts = heads % threads ? blocks(3 * threads, heads) : 1;
    long part = blocks(blocks(l->n, parts), QUERIES) * QUERIES;
    parts = blocks(l->n, part);

    long depth = blocks(l->d, 32), width = blocks(l->d, 16), steps = blocks(l->m, STEP);
    long keys = steps * 2 * depth * TILE, values = steps * width * TILE, queries = QUERIES / 16 * depth * TILE;
    long weights = KEYS / 16 * TILE, scores = KEYS / 16 * 512, sums = QUERIES / 16 * width * 256;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(max : failed)
    {
        bf16 *memory = aligned_alloc(64, 2 * (keys + values + queries + weights) + 4 * (scores + sums));
        struct work w = {.keys = memory, .largest = _mm512_setzero_si512()};
        if (memory) {
            w.values = w.keys + keys;
            w.queries = w.values + values;
            w.weights = w.queries + queries;
            w.scores = (float *)(w.weights + weights);
            w.sums = w.scores + scores;
            configure_tiles();
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < heads * parts; i++) {
            if (!memory)
                continue;
            long batch = i / parts / l->heads, head = i / parts % l->heads;
            long start = i % parts * part, end = min(start + part, l->n);
            pack_keys(&w, k + batch * l->k.batch + head * l->k.head, l->k.token, l->m, l->d);
            pack_values(&w, v + batch * l->v.batch + head * l->v.head, l->v.token, l->m, l->d);
            for (long j = start; j < end; j += QUERIES)
                attend(&w, l, q + batch * l->q.batch + head * l->q.head + j * l->q.token,
                       out + batch * l->out.batch + head * l->out.head + j * l->out.token,
                       min(end - j, QUERIES), scale * 1.44269504f /* log2(e) */);
        }
        if (!memory)
            failed = 2;
        else {
            _tile_release();
            if (w.far || _mm512_cmpge_epu16_mask(w.largest, _mm512_set1_epi16(LARGE)))
                failed = 3;
        }
        free(memory);
    }
    return failed;
}
