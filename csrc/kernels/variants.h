/* variants.h - the tables that the files of this folder define; only csrc/kernels.c chooses among
 * them. QL_ONLY_AVX2 leaves those above AVX2 out: five files of half a minute each under
 * sanitizers, for a CPU that would not run them anyway. */
#ifndef QL_KERNELS_VARIANTS_H
#define QL_KERNELS_VARIANTS_H

#include "../kernels.h"

extern const ql_kernels ql_kernels_naive, ql_kernels_portable;
#if defined(__x86_64__)
extern const ql_kernels ql_kernels_avx2, ql_kernels_avxvnni, ql_kernels_avx512,
    ql_kernels_avx512vnni, ql_kernels_avx512bf16, ql_kernels_amx;
#endif

#endif
