/* avxvnni.c - avx2 with dot products of bytes (Intel laptops since 2021). */
#if defined(__x86_64__) && !defined(QL_ONLY_AVX2)
#define QL_VARIANT avxvnni
#define QL_AHEAD   2048
#include "avx2.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
