/* portable.c - vectors of 16 bytes, which every compiler's baseline has or imitates. */
#define QL_VARIANT    portable
#define QL_LANES      4
#define QL_REGISTERS  16
#define QL_TILE_ROWS  1
#define QL_INT8_PARTS 4
#define QL_Q4_PARTS   4
#if defined(__x86_64__)
#include <emmintrin.h>

#define QL_WIDEN(half)                                                                             \
    (vu) _mm_unpacklo_epi16(_mm_cvtsi64_si128((long long)(half)), _mm_setzero_si128())
#define QL_NARROW(whole) __builtin_convertvector(whole, vh)
#define QL_SIGNED(bytes)                                                                           \
    (vi) _mm_srai_epi32(_mm_unpacklo_epi16(_mm_setzero_si128(),                                    \
                                           _mm_unpacklo_epi8(_mm_setzero_si128(),                  \
                                                             _mm_cvtsi32_si128((int)(bytes)))),    \
                        24)
#define QL_NEAREST(v) (vi) _mm_cvtps_epi32((__m128)(v))
#elif defined(__aarch64__)
#define QL_NEAREST(v) (vi) vcvtnq_s32_f32((float32x4_t)(v))
#else
#include <math.h>
#define QL_NEAREST(v)                                                                              \
    (vi) { (int)lrintf((v)[0]), (int)lrintf((v)[1]), (int)lrintf((v)[2]), (int)lrintf((v)[3]) }
#endif
#include "body.inc"
