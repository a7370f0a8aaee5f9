/* FreeU's filter at threshold 1, in place, on a CPU: operator.py says what it is, native.py when it is taken.

   What it adds is a sum of seven waves, and the cosine and sine of down + across are products of one along
   each axis. So a number of the map meets the waves along one axis, and only what a line of numbers sums to
   meets the rest. A thread takes a few channels of a sample, which stay in its core's cache between the two. */

#include <math.h>

#include "numbers.h"

enum { LANES = 128 }; /* channels at a time, where they lie last */

/* Steps are, in numbers, from a sample to the next, and from a position to the next where channels lie last or,
   where positions do, from a channel to the next. */
struct maps {
    long batch, channels, height, width, sample, step;
};

struct wave {
    float cos, sin;
};

/* Some lanes of a line of positions: their sums, plain and times its waves, (3, lanes). */
INLINE void sum(const void *x, long step, long length, const struct wave *along, long lanes, float *r,
                int bfloat16)
{
    memset(r, 0, 3 * lanes * sizeof *r);
    for (long i = 0; i < length; i++)
        for (long c = 0; c < lanes; c++) {
            float number = get(x, i * step + c, bfloat16);
            r[c] += number;
            r[lanes + c] += along[i].cos * number;
            r[2 * lanes + c] += along[i].sin * number;
        }
}

/* Adds to such a line a constant and multiples of its waves, (3, lanes). */
INLINE void add(void *x, long step, long length, const struct wave *along, long lanes, const float *r,
                int bfloat16)
{
    for (long i = 0; i < length; i++)
        for (long c = 0; c < lanes; c++) {
            float low = r[c] + along[i].cos * r[lanes + c] + along[i].sin * r[2 * lanes + c];
            put(x, i * step + c, get(x, i * step + c, bfloat16) + low, bfloat16);
        }
}

/* The line's sums, where its own axis' wave is w, become a part of the map's with all seven waves. */
INLINE void gather(const float *r, long lanes, struct wave w, float *s, long apart)
{
    float plain = r[0], cos = r[lanes], sin = r[2 * lanes];
    s[0] += plain;
    s[apart] += w.cos * plain;
    s[2 * apart] += w.sin * plain;
    s[3 * apart] += cos;
    s[4 * apart] += sin;
    s[5 * apart] += w.cos * cos - w.sin * sin;
    s[6 * apart] += w.sin * cos + w.cos * sin;
}

/* And the map's become what the line gets. */
INLINE void spread(const float *s, long apart, struct wave w, float gain, float *r, long lanes)
{
    r[0] = gain * (s[0] + w.cos * s[apart] + w.sin * s[2 * apart]);
    r[lanes] = gain * (s[3 * apart] + w.cos * s[5 * apart] + w.sin * s[6 * apart]);
    r[2 * lanes] = gain * (s[4 * apart] + w.cos * s[6 * apart] - w.sin * s[5 * apart]);
}

/* Some channels that lie beside each other: a line is a row, and its lanes are they. */
INLINE void filter_channels(char *x, const struct maps *m, const struct wave *down, const struct wave *across,
                            float gain, long lanes, int bfloat16)
{
    float s[7 * LANES] = {0}, r[3 * LANES];
    long row = m->width * m->step * (bfloat16 ? 2 : 4);
    for (long i = 0; i < m->height; i++) {
        sum(x + i * row, m->step, m->width, across, lanes, r, bfloat16);
        for (long c = 0; c < lanes; c++)
            gather(r + c, lanes, down[i], s + c, lanes);
    }
    for (long i = 0; i < m->height; i++) {
        for (long c = 0; c < lanes; c++)
            spread(s + c, lanes, down[i], gain, r + c, lanes);
        add(x + i * row, m->step, m->width, across, lanes, r, bfloat16);
    }
}

/* A channel whose positions lie beside each other: a line is a column, and its lanes are all of them. */
INLINE void filter_plane(char *x, long height, const struct wave *down, const struct wave *across, float gain,
                         long width, int bfloat16)
{
    float s[7] = {0}, r[3 * width];
    sum(x, width, height, down, width, r, bfloat16);
    for (long j = 0; j < width; j++)
        gather(r + j, width, across[j], s, 1);
    for (long j = 0; j < width; j++)
        spread(s, 1, across[j], gain, r + j, width);
    add(x, width, height, down, width, r, bfloat16);
}

/* Loops whose lengths a compiler knows are up to twice as fast: those of full lanes, and of usual widths. */
INLINE void filter_known(char *x, const struct maps *m, const struct wave *down, const struct wave *across,
                         float gain, long channels, int last, int bfloat16)
{
    if (last && channels == LANES)
        filter_channels(x, m, down, across, gain, LANES, bfloat16);
    else if (last)
        filter_channels(x, m, down, across, gain, channels, bfloat16);
    else if (m->width == 8)
        filter_plane(x, m->height, down, across, gain, 8, bfloat16);
    else if (m->width == 16)
        filter_plane(x, m->height, down, across, gain, 16, bfloat16);
    else if (m->width == 32)
        filter_plane(x, m->height, down, across, gain, 32, bfloat16);
    else if (m->width == 64)
        filter_plane(x, m->height, down, across, gain, 64, bfloat16);
    else
        filter_plane(x, m->height, down, across, gain, m->width, bfloat16);
}

FOR_EACH_CPU static void filter_part(char *x, const struct maps *m, const struct wave *down,
                                     const struct wave *across, float gain, long channels, int last,
                                     int bfloat16)
{
    if (bfloat16)
        filter_known(x, m, down, across, gain, channels, last, 1);
    else
        filter_known(x, m, down, across, gain, channels, last, 0);
}

static void make_waves(struct wave *waves, long length)
{
    for (long i = 0; i < length; i++) {
        double phase = 2 * M_PI * i / length;
        waves[i] = (struct wave){(float)cos(phase), (float)sin(phase)};
    }
}

/* Adds to each sample of x, in float32 or bfloat16, gain times its lowest frequencies. */
void filter(char *x, const struct maps *m, const float *gain, int last, int bfloat16, int threads)
{
    struct wave down[m->height], across[m->width];
    make_waves(down, m->height);
    make_waves(across, m->width);
    long at_once = last ? LANES : 1, parts = (m->channels + at_once - 1) / at_once, size = bfloat16 ? 2 : 4;
    if (m->batch * m->channels * m->height * m->width < FEW)
        threads = 1;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < m->batch * parts; i++) {
        long sample = i / parts, first = i % parts * at_once, left = m->channels - first;
        char *part = x + (sample * m->sample + first * (last ? 1 : m->step)) * size;
        filter_part(part, m, down, across, gain[sample] / (m->height * m->width),
                    left < at_once ? left : at_once, last, bfloat16);
    }
}
