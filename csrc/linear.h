/* linear.h - y = x Wᵀ + bias, for every way in which weights are held: float32 and bfloat16 with
 * few rows by the few-row kernels at memory speed, with many rows by OpenBLAS, or by products of
 * our own where they are faster: of float32 (AVX2), and of bfloat16 where weights are bfloat16 and
 * the CPU has them (x is rounded to bfloat16 then); weights of few bits by products of whole
 * numbers (x is rounded to 8 bits in groups of 64). Work is cut by the shapes alone, never by the
 * number of threads, so that results do not depend on it (docs/architecture.md). */
#ifndef QL_LINEAR_H
#define QL_LINEAR_H

#include "kernels.h"
#include "ql.h"

typedef struct ql_matrix { /* [n_out, n_in], row-major */
    const void *data;
    const float *bias; /* [n_out] or NULL */
    int n_out, n_in;
    ql_dtype dtype; /* QL_F32, QL_BF16; QL_INT8 and QL_Q4 lie in strips (kernels.h) */
} ql_matrix;

typedef struct ql_linear_job {
    float *y;       /* [T, w->n_out], row stride ldy */
    const float *x; /* [T, w->n_in], row stride ldx */
    const ql_matrix *w;
    size_t ldy, ldx;
    bool accumulate; /* y += instead of y = */
} ql_linear_job;

enum { QL_MAX_JOBS = 4 };

/* Bytes of scratch for products of up to n_rows rows with this matrix. */
size_t ql_linear_scratch(const ql_kernels *kernels, int n_threads, const ql_matrix *w, int n_rows);

/* All jobs side by side; they have the same x. n_rows: T. scratch: as much as the job that needs
 * most, 64-byte aligned. */
void ql_linear(const ql_kernels *kernels, int n_threads, const ql_linear_job *jobs, int n_jobs,
               int n_rows, void *scratch);

/* Row i of the matrix as float32: y [n_in]. */
void ql_matrix_row(const ql_kernels *kernels, float *y, const ql_matrix *w, int64_t i);

#endif
