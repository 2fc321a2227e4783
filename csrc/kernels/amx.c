/* amx.c - avx512vnni with products of whole tiles (Intel servers since 2023). */
#if defined(__x86_64__) && !defined(QL_ONLY_AVX2)
#define QL_VARIANT   amx
#define QL_AHEAD     2048
#define QL_MULTIPLY  "multiply_tiles.inc"
#define QL_INT8_MANY "integers_tiles.inc"
#include "avx512.inc"
#else
typedef int ql_nothing_here; /* a file of C holds at least one declaration */
#endif
