/* The sums of Winograd's convolution F(4x4, 3x3) in float32, channels last: winograd4x4.py says what it is.

   What is made of each side is a sum along one axis and then along the other, for several channels at a time.
   The letters are those of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). */

/* One form for each generation of processors, of which the loader of the library takes the newest. */
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, TILE = 6, CORE = 4, KERNEL = 3 };

#pragma GCC diagnostic ignored "-Wpsabi" /* None of these is passed: what takes them is inlined. */
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef lanes anywhere __attribute__((aligned(4), may_alias));

/* What is convolved, and of it the tiles and the channels coming out that are taken now. Channels are whole
   numbers of lanes. Of a kernel, channels going in lie `into` apart, and its nine numbers `apart`. */
struct work {
    long height, width, in, out, into, apart, first, tiles, some;
};

INLINE lanes get(const float *x)
{
    return *(const anywhere *)x;
}

INLINE void put(float *x, const lanes *numbers)
{
    *(anywhere *)x = *numbers;
}

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

/* Where maps have the position so far from the upper left one that a tile brings; -1 outside. */
INLINE long place(const struct work *w, long tile, long down, long right, long channels)
{
    long rows = (w->height + CORE - 1) / CORE, columns = (w->width + CORE - 1) / CORE;
    long row = CORE * (tile / columns % rows) + down, column = CORE * (tile % columns) + right;
    if (row < 0 || row >= w->height || column < 0 || column >= w->width)
        return -1;
    return ((tile / columns / rows * w->height + row) * w->width + column) * channels;
}

FOR_EACH_CPU static void input_of_tile(const float *x, const struct work *w, long tile, float *v)
{
    long from[TILE * TILE];
    for (long k = 0; k < TILE * TILE; k++)
        from[k] = place(w, w->first + tile, k / TILE - 1, k % TILE - 1, w->in);
    for (long c = 0; c < w->in; c += LANES) {
        lanes d[TILE * TILE], half[TILE * TILE];
        for (long k = 0; k < TILE * TILE; k++)
            d[k] = from[k] < 0 ? (lanes){0} : get(x + from[k] + c);
        for (long j = 0; j < TILE; j++)
            along_input(d + j, half + j, TILE);
        for (long i = 0; i < TILE; i++)
            along_input(half + TILE * i, d + TILE * i, 1);
        for (long k = 0; k < TILE * TILE; k++)
            put(v + (k * w->tiles + tile) * w->in + c, d + k);
    }
}

FOR_EACH_CPU static void kernel_of_channel(const float *g, const struct work *w, long channel, float *u)
{
    for (long c = 0; c < w->in; c += LANES) {
        lanes all[KERNEL * KERNEL], half[TILE * KERNEL], whole[TILE * TILE];
        for (long lane = 0; lane < LANES; lane++)
            for (long k = 0; k < KERNEL * KERNEL; k++)
                all[k][lane] = g[channel * KERNEL * KERNEL * w->in + (c + lane) * w->into + k * w->apart];
        for (long j = 0; j < KERNEL; j++)
            along_kernel(all + j, half + j, KERNEL);
        for (long i = 0; i < TILE; i++)
            along_kernel(half + KERNEL * i, whole + TILE * i, 1);
        for (long k = 0; k < TILE * TILE; k++)
            put(u + (k * w->some + channel) * w->in + c, whole + k);
    }
}

FOR_EACH_CPU static void output_of_tile(const float *const *m, const float *bias, const struct work *w,
                                        long tile, float *y)
{
    long to[CORE * CORE];
    for (long k = 0; k < CORE * CORE; k++)
        to[k] = place(w, w->first + tile, k / CORE, k % CORE, w->out);
    for (long c = 0; c < w->some; c += LANES) {
        lanes all[TILE * TILE], half[CORE * TILE], whole[CORE * CORE];
        for (long k = 0; k < TILE * TILE; k++)
            all[k] = get(m[k] + tile * w->some + c);
        for (long j = 0; j < TILE; j++)
            along_output(all + j, half + j, TILE);
        for (long i = 0; i < CORE; i++)
            along_output(half + TILE * i, whole + CORE * i, 1);
        for (long k = 0; k < CORE * CORE; k++) {
            whole[k] += get(bias + c);
            if (to[k] >= 0)
                put(y + to[k] + c, whole + k);
        }
    }
}

/* B^T d B of the tiles of x, (36, tiles, in). */
void sum_input(const float *x, const struct work *w, float *v, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < w->tiles; i++)
        input_of_tile(x, w, i, v);
}

/* G g G^T of kernels, (some, in, 3, 3) to (36, some, in). */
void sum_kernels(const float *g, const struct work *w, float *u, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < w->some; i++)
        kernel_of_channel(g, w, i, u);
}

/* A^T m A plus bias, of 36 products (tiles, some), into as many channels of y. */
void sum_products(const float *const *m, const float *bias, const struct work *w, float *y, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < w->tiles; i++)
        output_of_tile(m, bias, w, i, y);
}
