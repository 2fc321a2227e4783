/* avx2.c - x86-64 with AVX2, FMA and F16C (2013 on). */
#if defined(__x86_64__)
#include <immintrin.h>

#define QL_WIDEN(half)   (vu) _mm256_cvtepu16_epi32((__m128i)(half))
#define QL_NARROW(whole) __builtin_convertvector(whole, vh)
#define QL_VARIANT       avx2
#define QL_LANES         8
#define QL_REGISTERS     16
#include "body.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
