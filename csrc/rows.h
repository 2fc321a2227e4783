/* rows.h - rows of numbers as the memory keeps them: float32, bfloat16, or int8 with one scale a
 * row. Rows of one kind lie side by side. */
#ifndef QL_ROWS_H
#define QL_ROWS_H

#include "kernels.h"
#include "ql.h"

size_t ql_row_bytes(ql_dtype dtype, size_t n); /* of a row of n numbers */

/* A row of n floats to and from the way it is kept. */
void ql_put_row(const ql_kernels *kernels, void *to, const float *from, ql_dtype dtype, size_t n);
void ql_get_row(const ql_kernels *kernels, float *to, const void *from, ql_dtype dtype, size_t n);

/* y[t, i] = <x[t, :], row i>. x [n_x, n], y [n_x, n_rows] with row stride ldy; 1 <= n_x <=
 * QL_FEW_ROWS. next: rows to be met after these, or NULL (kernels.h). */
void ql_dot_rows(const ql_kernels *kernels, float *y, size_t ldy, const float *x, const void *rows,
                 ql_dtype dtype, int n_x, size_t n_rows, size_t n, const void *next);
/* y[t, :] += sum over i of p[t, i] * row i. y [n_p, n], row stride ldy; p [n_p, n_rows], row stride
 * ldp; 1 <= n_p <= QL_FEW_ROWS. */
void ql_mix_rows(const ql_kernels *kernels, float *y, size_t ldy, const float *p, size_t ldp,
                 const void *rows, ql_dtype dtype, int n_p, size_t n_rows, size_t n,
                 const void *next);

#endif
