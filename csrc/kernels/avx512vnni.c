/* avx512vnni.c - avx512 with dot products of bytes (Intel since 2019, AMD since 2022). */
#if defined(__x86_64__)
#include <immintrin.h>

#define QL_WIDEN(half)          (vu) _mm512_cvtepu16_epi32((__m256i)(half))
#define QL_NARROW(whole)        (vh) _mm512_cvtepi32_epi16((__m512i)(whole))
#define QL_SIGNED(bytes)        (vi) _mm512_cvtepi8_epi32((__m128i)(bytes))
#define QL_NEAREST(v)           (vi) _mm512_cvtps_epi32((__m512)(v))
#define QL_BYTES(whole)         (vb) _mm512_cvtepi32_epi8((__m512i)(whole))
#define QL_HALVES(bits)         (vf) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(bits)))
#define QL_DOT_BYTES(sum, w, x) (vi) _mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(w), (__m512i)(x))
#define QL_TILE_ROWS            6
#define QL_INT8_PARTS           4
#define QL_Q4_PARTS             2
#define QL_VARIANT              avx512vnni
#define QL_LANES                16
#define QL_REGISTERS            32
#include "body.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
