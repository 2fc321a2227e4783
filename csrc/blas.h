/* blas.h - single-precision matrix products by OpenBLAS, single-threaded: the threads are ours
 * (threads.h). Row-major. */
#ifndef QL_BLAS_H
#define QL_BLAS_H

#include <stddef.h>

/* c [m, n] = alpha a bᵀ + beta c; a [m, k], b [n, k]; row strides lda, ldb, ldc in elements. beta
 * 0: c is only written. */
void ql_sgemm_nt(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb,
                 int m, int n, int k, float alpha, float beta);

void ql_blas_single_threaded(void); /* before the first product */
const char *ql_blas_name(void);     /* "OpenBLAS 0.3.34 ... SkylakeX" */

#endif
