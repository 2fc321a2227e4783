/* avx512.c - x86-64 with AVX-512 F, BW, DQ and VL. */
#if defined(__x86_64__) && !defined(QL_ONLY_AVX2)
#define QL_VARIANT avx512
#include "avx512.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
