/* portable.c - vectors of 16 bytes, which every compiler's baseline has or imitates. */
#define QL_VARIANT   portable
#define QL_LANES     4
#define QL_REGISTERS 16
#if defined(__x86_64__)
#include <emmintrin.h>

#define QL_WIDEN(half)                                                                             \
    (vu) _mm_unpacklo_epi16(_mm_cvtsi64_si128((long long)(half)), _mm_setzero_si128())
#define QL_NARROW(whole) __builtin_convertvector(whole, vh)
#endif
#include "body.inc"
