/* avx2.c - x86-64 with AVX2, FMA and F16C (2013 on). */
#if defined(__x86_64__)
#define QL_VARIANT avx2
#include "avx2.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
