/* Numbers in float32 or bfloat16, and functions in a form for each processor: what filter.c and norm.c share. */

#include <stdint.h>
#include <string.h>

/* One form for each generation of processors, of which the loader of the library takes the newest. Compilers
   older than gcc 12 know generations by their vectors alone. */
#if !defined(__x86_64__)
#define FOR_EACH_CPU
#elif __GNUC__ >= 12
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#define INLINE static inline __attribute__((always_inline))

enum { FEW = 16 * 1024 }; /* numbers for which it does not pay to wake a second thread */

INLINE float of_bits(uint32_t bits)
{
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE uint32_t bits_of(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

INLINE float get(const void *x, long i, int bfloat16)
{
    return bfloat16 ? of_bits((uint32_t)((const uint16_t *)x)[i] << 16) : ((const float *)x)[i];
}

/* In bfloat16 rounded to nearest. What is not a number came in bfloat16 or was made here, and so has nothing in
   its lower half that would carry it elsewhere. */
INLINE void put(void *y, long i, float number, int bfloat16)
{
    uint32_t bits = bits_of(number);
    if (bfloat16)
        ((uint16_t *)y)[i] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    else
        ((float *)y)[i] = number;
}
