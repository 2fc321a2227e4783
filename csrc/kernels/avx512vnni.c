/* avx512vnni.c - avx512 with dot products of bytes (Intel since 2019, AMD since 2022). */
#if defined(__x86_64__) && !defined(QL_ONLY_AVX2)
#define QL_VARIANT avx512vnni
#include "avx512.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
