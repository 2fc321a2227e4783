/* avx2.c - x86-64 with AVX2, FMA and F16C (2013 on). */
#if defined(__x86_64__)
#include <immintrin.h>

/* Two instructions by name: as whole numbers may be added in any order, gcc adds products to each
 * other first, and then has no registers for all sums of a tile (a fifth slower). */
static inline __attribute__((always_inline)) __m256i dot_words(__m256i sum, __m256i w, __m256i x) {
    __m256i products;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
            : "+x"(sum), "=&x"(products)
            : "x"(w), "x"(x));
    return sum;
}

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
#define QL_DOT_WORDS(sum, w, x) (vi) dot_words((__m256i)(sum), (__m256i)(w), (__m256i)(x))
#define QL_FIRST(v)             ((v) & 0x00ff00ff)
#define QL_SECOND(v)            (vi) _mm256_srli_epi16((__m256i)(v), 8)
#define QL_FIRST_OF_X(v)        (vi) _mm256_srai_epi16(_mm256_slli_epi16((__m256i)(v), 8), 8)
#define QL_SECOND_OF_X(v)       (vi) _mm256_srai_epi16((__m256i)(v), 8)
#define QL_TILE_ROWS            2
#define QL_INT8_PARTS           2
#define QL_Q4_PARTS             2
#define QL_VARIANT              avx2
#define QL_BEATS_BLAS
#define QL_LANES     8
#define QL_REGISTERS 16
#include "body.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
