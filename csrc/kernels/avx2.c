/* avx2.c - x86-64 with AVX2, FMA and F16C (2013 on). */
#if defined(__x86_64__)
#include <immintrin.h>

#define QL_WIDEN(half)   (vu) _mm256_cvtepu16_epi32((__m128i)(half))
#define QL_NARROW(whole) __builtin_convertvector(whole, vh)
#define QL_SIGNED(bytes) (vi) _mm256_cvtepi8_epi32(_mm_cvtsi64_si128((long long)(bytes)))
#define QL_NEAREST(v)    (vi) _mm256_cvtps_epi32((__m256)(v))
#define QL_BYTES(whole)                                                                            \
    (vb) _mm_cvtsi128_si64(                                                                        \
        _mm_packs_epi16(_mm_packs_epi32(_mm256_castsi256_si128((__m256i)(whole)),                  \
                                        _mm256_extracti128_si256((__m256i)(whole), 1)),            \
                        _mm_setzero_si128()))
#define QL_HALVES(bits) (vf) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(bits)))
#define QL_DOT_PAIRS(sum, w, x)                                                                    \
    (vi) _mm256_add_epi16((__m256i)(sum), _mm256_maddubs_epi16((__m256i)(w), (__m256i)(x)))
#define QL_ADD_PAIRS(low, high)                                                                    \
    ((vi)_mm256_madd_epi16((__m256i)(low), _mm256_set1_epi16(1)) +                                 \
     (vi)_mm256_madd_epi16((__m256i)(high), _mm256_set1_epi16(16)))
#define QL_TILE_ROWS  2
#define QL_INT8_PARTS 2
#define QL_Q4_PARTS   2
#define QL_VARIANT    avx2
#define QL_BEATS_BLAS
#define QL_LANES     8
#define QL_REGISTERS 16
#include "body.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
