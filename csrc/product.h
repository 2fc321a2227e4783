/* product.h - one piece of y = x Wᵀ + bias: some rows of x by some rows of W, for every way in
 * which weights are held. linear.h cuts whole products into pieces.
 *
 * float32 and bfloat16 with few rows go by the few-row kernels at memory speed, with many rows by
 * OpenBLAS, or by products of our own where they are faster: of float32 (AVX2, AVX-512), and of
 * bfloat16 where weights are bfloat16 and the CPU has them (x is rounded to bfloat16 then); weights
 * of few bits by products of whole numbers (x is rounded to 8 bits in groups of 64). */
#ifndef QL_PRODUCT_H
#define QL_PRODUCT_H

#include "kernels.h"
#include "ql.h"

typedef struct ql_matrix { /* [n_out, n_in], row-major */
    const void *data;
    const float *bias; /* [n_out] or NULL */
    int n_out, n_in;
    ql_dtype dtype; /* QL_F32, QL_BF16; QL_INT8 and QL_Q4 lie in strips (kernels.h) */
} ql_matrix;

typedef enum ql_way {
    QL_BY_DOTS,
    QL_BY_SGEMM,
    QL_BY_PANELS_F32,
    QL_BY_PANELS_BF16,
    QL_BY_INTEGERS
} ql_way;

typedef struct ql_piece {
    const ql_kernels *kernels;
    ql_way way;
    const ql_matrix *w;
    int first, n;     /* rows of w; of strips, first is that of one */
    const char *x;    /* [rows, w->n_in], as the way takes them */
    size_t row_bytes; /* from one row of x to the next */
    int rows;
    float *y; /* [rows, n], row stride ldy */
    size_t ldy;
    bool accumulate; /* y += instead of y = */
    void *scratch;   /* ql_piece_scratch bytes, 64-byte aligned */
} ql_piece;

ql_way ql_way_of(const ql_kernels *kernels, const ql_matrix *w, int n_rows);

/* Whether x is taken as it is, float32. */
bool ql_takes_floats(ql_way way);

/* Bytes of k numbers of a row of x as the way takes them. */
size_t ql_rounded_bytes(ql_way way, size_t k);

/* Bytes from one row of k numbers to the next. */
size_t ql_rounded_stride(ql_way way, size_t k);

/* x [k] as a way takes it that does not take floats; whole groups of a row or its end. */
void ql_round(const ql_kernels *kernels, ql_way way, void *to, const float *x, size_t k);

/* Rows of w in a piece, so that the pieces of few rows go evenly on the threads; those of sgemm
 * depend on the shape alone, as its bits may depend on them. */
int ql_piece_rows(const ql_matrix *w, ql_way way, int n_rows, int n_threads);
/* Whether rows are so few that weights come from memory as fast as they are multiplied. */
bool ql_few_rows(ql_way way, int n_rows);

/* For pieces of up to n rows of w. */
size_t ql_piece_scratch(const ql_kernels *kernels, const ql_matrix *w, ql_way way, int n);

void ql_multiply(const ql_piece *piece);

/* Row i of the matrix as float32: y [n_in]. */
void ql_matrix_row(const ql_kernels *kernels, float *y, const ql_matrix *w, int64_t i);

#endif
