/* A processor's vectors of LANES numbers, and products of them: what vectors.c and winograd.c share.

   Sums are in float32. What is given and multiplied is so too or, with BFLOAT16, in that: then a lane has two
   numbers of a factor, neighbours along the axis that is summed. */

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#pragma GCC diagnostic ignored "-Wpsabi" /* None of these is passed: what takes them is inlined. */
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES), may_alias));
typedef lanes lanes_anywhere __attribute__((aligned(4), may_alias));

/* A number as it is given, and what a lane has of a factor: so many of these TOGETHER. */
#ifdef BFLOAT16
enum { TOGETHER = 2 };
typedef uint16_t number;
typedef uint32_t factor __attribute__((may_alias));
typedef bits factors __attribute__((aligned(2)));
#else
enum { TOGETHER = 1 };
typedef float number, factor;
typedef lanes_anywhere factors;
#endif

INLINE long min(long a, long b)
{
    return a < b ? a : b;
}

INLINE long parts_of(long count, long of)
{
    return (count + of - 1) / of;
}

/* Lanes, TOGETHER of them that lie so far apart, as factors, rounded to nearest. */
INLINE factors as_factors(const lanes *numbers, long apart)
{
#ifdef BFLOAT16
    bits first = (bits)numbers[0] + 0x8000, second = (bits)numbers[apart] + 0x8000;
    return first >> 16 | (second & 0xffff0000);
#else
    return *numbers;
#endif
}

/* Numbers become those that are not below them; what is not a number stays. */
INLINE void raise_to(lanes *x, const lanes *least)
{
#if LANES == 16
    *x = (lanes)_mm512_max_ps((__m512)*least, (__m512)*x);
#else
    *x = (lanes)_mm256_max_ps((__m256)*least, (__m256)*x);
#endif
}

INLINE void add_product(lanes *sum, factor a, const factors *b)
{
#ifdef BFLOAT16
    *sum = (lanes)_mm512_dpbf16_ps((__m512)*sum, (__m512bh)((bits){0} + a), (__m512bh)*b);
#else
    *sum += a * *b;
#endif
}
