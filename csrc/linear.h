/* linear.h - products with weights, y = x Wᵀ + bias, cut into pieces (product.h) for the threads.
 * What sgemm does is cut by the shapes alone, and all else has the same bits however it is cut, so
 * that results do not depend on the number of threads (docs/architecture.md). */
#ifndef QL_LINEAR_H
#define QL_LINEAR_H

#include "product.h"

/* RMSNorm of x on its way into a product; weight [n_in], or NULL for none. */
typedef struct ql_norm {
    const float *weight;
    float eps;
} ql_norm;

typedef struct ql_linear_job {
    float *y;       /* [T, w->n_out], row stride ldy */
    const float *x; /* [T, w->n_in], row stride ldx */
    const ql_matrix *w;
    size_t ldy, ldx;
    ql_norm norm;
    bool accumulate; /* y += instead of y = */
} ql_linear_job;

enum { QL_MAX_JOBS = 4 };

/* Bytes of scratch for products of up to n_rows rows with this matrix; normed: whether x may be. */
size_t ql_linear_scratch(const ql_kernels *kernels, int n_threads, const ql_matrix *w, bool normed,
                         int n_rows);

/* All jobs side by side; they have the same x and norm. n_rows: T. scratch: as much as the job that
 * needs most, 64-byte aligned. */
void ql_linear(const ql_kernels *kernels, int n_threads, const ql_linear_job *jobs, int n_jobs,
               int n_rows, void *scratch);

/* The weights of SwiGLU: [F, E], [F, E], [E, F]. */
typedef struct ql_mlp {
    const ql_matrix *gate, *up, *down;
    ql_norm norm; /* of x */
} ql_mlp;

/* Bytes of scratch for n_rows rows. */
size_t ql_mlp_scratch(const ql_kernels *kernels, int n_threads, const ql_mlp *w, int n_rows);

/* y += (silu(x gateᵀ) * (x upᵀ)) downᵀ: x, y [n_rows, E]; y may be x. gate and up are
 * never there as a whole: what a piece of both comes to is kept as `down` takes it. */
void ql_mlp_add(const ql_kernels *kernels, int n_threads, const ql_mlp *w, float *y, const float *x,
                int n_rows, void *scratch);

#endif
