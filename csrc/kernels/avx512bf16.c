/* avx512bf16.c - avx512vnni with dot products of bfloat16. */
#if defined(__x86_64__) && !defined(QL_ONLY_AVX2)
#define QL_VARIANT  avx512bf16
#define QL_MULTIPLY "multiply_pairs.inc"
#include "avx512.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
