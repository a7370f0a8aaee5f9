/* Winograd's convolution of 3x3, channels last: winograd_in_c.py says what it is.

   What is made of each side is a sum along one axis and then along the other, for LANES channels at a time.
   The letters are those of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016).
   Of the numbers that a tile has, 36 or 16, each is a plane of all tiles, and so for kernels and products. */

#include <omp.h>
#include <unistd.h>

#include "lanes.h"

#ifdef BFLOAT16 /* Sums for larger tiles weigh numbers too differently for it. */
enum { TILE = 4 };
#else
enum { TILE = 6 };
#endif

enum {
    KERNEL = 3,
    CORE = TILE - KERNEL + 1,
    PLANES = TILE * TILE,
    NINE = KERNEL * KERNEL,
    PANEL = 2 * LANES,        /* channels coming out that lie beside each other in planes of kernels ... */
    STRIP = 4 + 2 * TOGETHER, /* ... and meet so many tiles: sums enough that none is waited for */
    DEEP = 160,               /* factors of a sum, as longer ones would be rounded more */
    TILES = 384,              /* strips of so many stay in a core's second cache, while a panel meets them */
    TURNED = 16,              /* channels going in, of whose kernels a panel is made at a time */
    LINE = 16,                /* numbers between planes: those at one place of all do not share a cache's set */
    SOME = 64,                /* channels going in of a panel that stays near, with its sums, if tiles are few */
};

/* Channels going in, of which a panel leaves a sixth of a core's nearest cache to what it meets. */
static long deepest;

__attribute__((constructor)) static void ask_for_cache(void)
{
    long cache = sysconf(_SC_LEVEL1_DCACHE_SIZE), least = 32 * 1024;
    deepest = (cache > least ? cache : least) / 6 * 5 / (PANEL * sizeof(number));
}

/* What is convolved, and how many of all tiles and of the channels coming out are taken at a time. Channels
   are whole numbers of lanes, and of panels. The height is of what comes out; above and below it go rows in
   that are only looked at. Of a kernel, channels going in lie `into` apart, and its nine numbers `apart`. */
struct work {
    long height, width, above, below, in, out, into, apart, tiles, tiles_at_once, out_at_once;
};

INLINE lanes get(const float *x)
{
    return *(const lanes_anywhere *)x;
}

INLINE void put(float *x, const lanes *numbers)
{
    *(lanes_anywhere *)x = *numbers;
}

/* Numbers as they are given, in float32. */
INLINE lanes take(const number *x)
{
#ifdef BFLOAT16
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
#else
    return get(x);
#endif
}

/* And back, rounded to nearest. */
INLINE void give(number *x, const lanes *numbers)
{
#ifdef BFLOAT16
    _mm256_storeu_si256((__m256i *)x, (__m256i)_mm512_cvtneps_pbh((__m512)*numbers));
#else
    put(x, numbers);
#endif
}

#ifdef BFLOAT16
/* B^T d of four that lie so far apart. */
INLINE void along_input(const lanes *d, lanes *v, long apart)
{
    lanes d1 = d[apart], d2 = d[2 * apart];
    v[0] = d[0] - d2;
    v[apart] = d1 + d2;
    v[2 * apart] = d2 - d1;
    v[3 * apart] = d1 - d[3 * apart];
}

/* G g of three. */
INLINE void along_kernel(const lanes *g, lanes *u, long apart)
{
    lanes ends = 0.5f * (g[0] + g[2 * apart]), middle = 0.5f * g[apart];
    u[0] = g[0];
    u[apart] = ends + middle;
    u[2 * apart] = ends - middle;
    u[3 * apart] = g[2 * apart];
}

/* A^T m of four. */
INLINE void along_output(const lanes *m, lanes *y, long apart)
{
    y[0] = m[0] + m[apart] + m[2 * apart];
    y[apart] = m[apart] - m[2 * apart] - m[3 * apart];
}
#else
/* B^T d of six that lie so far apart. */
INLINE void along_input(const lanes *d, lanes *v, long apart)
{
    lanes d1 = d[apart], d2 = d[2 * apart], d3 = d[3 * apart], d4 = d[4 * apart];
    lanes even = d4 - 4 * d2, odd = d3 - 4 * d1, far_even = d4 - d2, far_odd = 2 * (d3 - d1);
    v[0] = 4 * (d[0] - d2) + far_even;
    v[apart] = even + odd;
    v[2 * apart] = even - odd;
    v[3 * apart] = far_even + far_odd;
    v[4 * apart] = far_even - far_odd;
    v[5 * apart] = 4 * (d1 - d3) + d[5 * apart] - d3;
}

/* G g of three. */
INLINE void along_kernel(const lanes *g, lanes *u, long apart)
{
    const float sixth = 1 / 6.f;
    lanes g0 = g[0], g1 = g[apart], g2 = g[2 * apart];
    lanes even = -sixth * (g0 + g2), odd = -sixth * g1;
    lanes far_even = sixth * (g0 / 4 + g2), far_odd = sixth / 2 * g1;
    u[0] = g0 / 4;
    u[apart] = even + odd;
    u[2 * apart] = even - odd;
    u[3 * apart] = far_even + far_odd;
    u[4 * apart] = far_even - far_odd;
    u[5 * apart] = g2;
}

/* A^T m of six. */
INLINE void along_output(const lanes *m, lanes *y, long apart)
{
    lanes m1 = m[apart], m2 = m[2 * apart], m3 = m[3 * apart], m4 = m[4 * apart];
    lanes even = m1 + m2, odd = m1 - m2, far_even = m3 + m4, far_odd = m3 - m4;
    y[0] = m[0] + even + far_even;
    y[apart] = odd + 2 * far_odd;
    y[2 * apart] = even + 4 * far_even;
    y[3 * apart] = odd + 8 * far_odd + m[5 * apart];
}

#endif

/* Where maps with so many rows more have the position so far from the upper left one that a tile brings;
   -1 outside. */
INLINE long place(const struct work *w, long tile, long down, long right, long channels, long above,
                  long below)
{
    long rows = parts_of(w->height, CORE), columns = parts_of(w->width, CORE);
    long row = CORE * (tile / columns % rows) + down + above, column = CORE * (tile % columns) + right;
    long height = above + w->height + below;
    if (row < 0 || row >= height || column < 0 || column >= w->width)
        return -1;
    return ((tile / columns / rows * height + row) * w->width + column) * channels;
}

/* B^T d B of a tile of x. */
static void input_of_tile(const number *x, const struct work *w, long tile, number *v, long plane)
{
    long from[PLANES];
    for (long k = 0; k < PLANES; k++)
        from[k] = place(w, tile, k / TILE - 1, k % TILE - 1, w->in, w->above, w->below);
    for (long c = 0; c < w->in; c += LANES) {
        lanes d[PLANES], half[PLANES];
        for (long k = 0; k < PLANES; k++)
            d[k] = from[k] < 0 ? (lanes){0} : take(x + from[k] + c);
        for (long j = 0; j < TILE; j++)
            along_input(d + j, half + j, TILE);
        for (long i = 0; i < TILE; i++)
            along_input(half + TILE * i, d + TILE * i, 1);
        for (long k = 0; k < PLANES; k++)
            give(v + k * plane + c, d + k);
    }
}

/* G g G^T of a panel of kernels, for some channels going in: (channels, PANEL) in each plane. */
static void kernels_of_panel(const number *g, const struct work *w, long channels, number *u, long plane)
{
    number turned[TURNED][NINE][PANEL];
    for (long lane = 0; lane < PANEL; lane++) {
        const number *from = g + lane * NINE * w->in, *next = from + TURNED * w->into;
        for (long k = 0; k < NINE; k++) /* Most likely the next that are asked for: they are far apart. */
            __builtin_prefetch(next + k * (w->apart > 1 ? w->apart : TURNED));
        for (long c = 0; c < channels; c++)
            for (long k = 0; k < NINE; k++)
                turned[c][k][lane] = from[c * w->into + k * w->apart];
    }
    for (long c = 0; c < channels; c += TOGETHER)
        for (long first = 0; first < PANEL; first += LANES) {
            lanes all[NINE], half[TILE * KERNEL], whole[TOGETHER * PLANES];
            for (long t = 0; t < TOGETHER; t++) {
                for (long k = 0; k < NINE; k++)
                    all[k] = take(turned[c + t][k] + first);
                for (long j = 0; j < KERNEL; j++)
                    along_kernel(all + j, half + j, KERNEL);
                for (long i = 0; i < TILE; i++)
                    along_kernel(half + KERNEL * i, whole + t * PLANES + TILE * i, 1);
            }
            for (long k = 0; k < PLANES; k++) {
                number *to = u + k * plane + c * PANEL + first * TOGETHER;
                *(factors *)to = as_factors(whole + k, PLANES);
            }
        }
}

/* v times a panel of u, (rows, deep) and (deep, PANEL) factors, becomes m or, where that has begun, is added
   to it. */
INLINE void strip(const factor *v, long in, const factors *u, long deep, float *m, long out, int rows,
                  int begun)
{
    lanes sums[STRIP][2] = {0};
#pragma GCC unroll 4
    for (long c = 0; c < deep; c++) {
        factors left = u[2 * c], right = u[2 * c + 1];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            add_product(&sums[i][0], v[i * in + c], &left);
            add_product(&sums[i][1], v[i * in + c], &right);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < 2; j++) {
            float *to = m + i * out + j * LANES;
            if (begun)
                sums[i][j] += get(to);
            put(to, &sums[i][j]);
        }
}

/* In one plane v times a panel of u, (rows, deep) and (deep, PANEL), becomes m, (rows, PANEL), or is added to
   it. Rows of v and m lie `in` and `out` apart. */
static void meet(const number *v, long rows, long in, const number *u, long deep, float *m, long out,
                 int begun)
{
    long strips = parts_of(rows, STRIP), far = in / TOGETHER, all = deep / TOGETHER;
    long step = parts_of(all, parts_of(all, DEEP));
    for (long i = 0; i < strips; i++) {
        long row = rows * i / strips, count = rows * (i + 1) / strips - row;
        float *sums = m + row * out;
        for (long c = 0; c < all; c += step) {
            const factor *numbers = (const factor *)(v + row * in) + c;
            const factors *panel = (const factors *)u + 2 * c;
            long some = min(step, all - c);
            int more = begun || c > 0;
            switch (count) { /* Each with its own number of registers. */
            case 1: strip(numbers, far, panel, some, sums, out, 1, more); break;
            case 2: strip(numbers, far, panel, some, sums, out, 2, more); break;
            case 3: strip(numbers, far, panel, some, sums, out, 3, more); break;
            case 4: strip(numbers, far, panel, some, sums, out, 4, more); break;
            case 5: strip(numbers, far, panel, some, sums, out, 5, more); break;
            case 6: strip(numbers, far, panel, some, sums, out, 6, more); break;
#ifdef BFLOAT16
            case 7: strip(numbers, far, panel, some, sums, out, 7, more); break;
            case 8: strip(numbers, far, panel, some, sums, out, 8, more); break;
#endif
            }
        }
    }
}

/* In one plane v times u: (rows, in) and (out / PANEL, in, PANEL) make m, (rows, out). */
static void multiply(const number *v, long rows, long in, const number *u, long out, float *m)
{
    long parts = parts_of(in, deepest), all = in / LANES;
    for (long i = 0; i < parts; i++) {
        long c = all * i / parts * LANES, deep = all * (i + 1) / parts * LANES - c;
        for (long o = 0; o < out; o += PANEL)
            meet(v + c, rows, in, u + o * in + c * PANEL, deep, m + o, out, c > 0);
    }
}

/* A^T m A of a tile plus bias, into as many channels of y. */
static void output_of_tile(const float *m, long plane, const number *bias, const struct work *w, long out,
                           long tile, number *y)
{
    long to[CORE * CORE];
    for (long k = 0; k < CORE * CORE; k++)
        to[k] = place(w, tile, k / CORE, k % CORE, w->out, 0, 0);
    for (long c = 0; c < out; c += LANES) {
        lanes all[PLANES], half[CORE * TILE], whole[CORE * CORE];
        for (long k = 0; k < PLANES; k++)
            all[k] = get(m + k * plane + c);
        for (long j = 0; j < TILE; j++)
            along_output(all + j, half + j, TILE);
        for (long i = 0; i < CORE; i++)
            along_output(half + TILE * i, whole + CORE * i, 1);
        for (long k = 0; k < CORE * CORE; k++) {
            whole[k] += take(bias + c);
            if (to[k] >= 0)
                give(y + to[k] + c, whole + k);
        }
    }
}

/* The convolution y of x by kernels g plus bias. v, u and m are for what is made of tiles, of kernels and of
   both: PLANES times in, in, out_at_once numbers for each of tiles_at_once, out_at_once, tiles_at_once, and a
   LINE. */
void convolve(const number *x, const number *g, const number *bias, const struct work *w, number *v,
              number *u, float *m, number *y, int threads)
{
    long blocks = parts_of(w->tiles, w->tiles_at_once), groups = parts_of(w->out, w->out_at_once);
#pragma omp parallel num_threads(threads)
    for (long part = 0, block = -1, group = -1; part < blocks * groups; part++) {
        /* Of tiles and of kernels, those in fewer parts are gone through once. */
        long next_block = blocks < groups ? part / groups : part % blocks;
        long next_group = blocks < groups ? part % groups : part / blocks;
        long tile = next_block * w->tiles_at_once, tiles = min(w->tiles - tile, w->tiles_at_once);
        long first = next_group * w->out_at_once, out = min(w->out - first, w->out_at_once);
        long v_plane = tiles * w->in + LINE, u_plane = out * w->in + LINE, m_plane = tiles * out + LINE;
        if (next_group != group) {
            long panels = out / PANEL;
#pragma omp for
            for (long i = 0; i < panels * parts_of(w->in, TURNED); i++) {
                long channel = i / panels * TURNED, kernel = i % panels * PANEL;
                kernels_of_panel(g + (first + kernel) * NINE * w->in + channel * w->into, w,
                                 min(w->in - channel, TURNED), u + kernel * w->in + channel * PANEL, u_plane);
            }
        }
        if (next_block != block) {
#pragma omp for
            for (long i = 0; i < tiles; i++)
                input_of_tile(x, w, tile + i, v + i * w->in, v_plane);
        }
        group = next_group;
        block = next_block;
        long tasks = parts_of(tiles, TILES); /* in each plane */
#pragma omp for schedule(dynamic)
        for (long i = 0; i < PLANES * tasks; i++) {
            long k = i / tasks, row = tiles * (i % tasks) / tasks, rows = tiles * (i % tasks + 1) / tasks - row;
            multiply(v + k * v_plane + row * w->in, rows, w->in, u + k * u_plane, out,
                     m + k * m_plane + row * out);
        }
#pragma omp for
        for (long i = 0; i < tiles; i++)
            output_of_tile(m + i * out, m_plane, bias + first, w, out, tile + i, y + first);
    }
}

/* The same where tiles are few, all of them at a time. Making the kernels then takes longest: each thread makes
   a panel of them in parts that stay in its core's cache, and lets each part meet the tiles at once. u and m
   are for such a part and for the sums of its panel, of each thread. */
void convolve_few(const number *x, const number *g, const number *bias, const struct work *w, number *v,
                  number *u, float *m, number *y, int threads)
{
    long v_plane = w->tiles * w->in + LINE, u_plane = SOME * PANEL + LINE, m_plane = w->tiles * PANEL + LINE;
#pragma omp parallel num_threads(threads)
    {
        number *kernels = u + omp_get_thread_num() * PLANES * u_plane;
        float *sums = m + omp_get_thread_num() * PLANES * m_plane;
#pragma omp for
        for (long i = 0; i < w->tiles; i++)
            input_of_tile(x, w, i, v + i * w->in, v_plane);
#pragma omp for schedule(dynamic)
        for (long o = 0; o < w->out; o += PANEL) {
            for (long first = 0; first < w->in; first += SOME) {
                long deep = min(w->in - first, SOME);
                for (long c = 0; c < deep; c += TURNED)
                    kernels_of_panel(g + o * NINE * w->in + (first + c) * w->into, w, min(deep - c, TURNED),
                                     kernels + c * PANEL, u_plane);
                for (long k = 0; k < PLANES; k++)
                    meet(v + k * v_plane + first, w->tiles, w->in, kernels + k * u_plane, deep,
                         sums + k * m_plane, PANEL, first > 0);
            }
            for (long i = 0; i < w->tiles; i++)
                output_of_tile(sums + i * PANEL, m_plane, bias + o, w, PANEL, i, y + o);
        }
    }
}
