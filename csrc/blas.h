/* blas.h - single-precision matrix products by OpenBLAS, single-threaded: the threads are ours
 * (threads.h). Row-major. */
#ifndef QL_BLAS_H
#define QL_BLAS_H

#include <stdbool.h>
#include <stddef.h>

/* c [m, n] = a bᵀ (+ c); a [m, k], b [n, k]; row strides lda, ldb, ldc in elements. */
void ql_sgemm_nt(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb,
                 int m, int n, int k, bool accumulate);

void ql_blas_single_threaded(void); /* before the first product */
const char *ql_blas_name(void);     /* "OpenBLAS 0.3.34 ... SkylakeX" */

#endif
