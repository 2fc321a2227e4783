#include "rows.h"

#include <string.h>

size_t ql_row_bytes(ql_dtype dtype, size_t n) {
    return dtype == QL_F32    ? n * sizeof(float)
           : dtype == QL_BF16 ? n * sizeof(uint16_t)
                              : n + sizeof(float);
}

void ql_put_row(const ql_kernels *kernels, void *to, const float *from, ql_dtype dtype, size_t n) {
    if (dtype == QL_F32)
        memcpy(to, from, n * sizeof *from);
    else if (dtype == QL_BF16)
        kernels->pack_bf16(to, from, n);
    else
        kernels->pack_int8(to, from, n);
}

void ql_get_row(const ql_kernels *kernels, float *to, const void *from, ql_dtype dtype, size_t n) {
    if (dtype == QL_F32)
        memcpy(to, from, n * sizeof *to);
    else if (dtype == QL_BF16)
        kernels->unpack_bf16(to, from, n);
    else
        kernels->unpack_int8(to, from, n);
}

void ql_dot_rows(const ql_kernels *kernels, float *y, size_t ldy, const float *x, const void *rows,
                 ql_dtype dtype, int n_x, size_t n_rows, size_t n, const void *next) {
    if (dtype == QL_F32)
        kernels->dots_f32(y, ldy, x, n, rows, n, n_x, n_rows, n, next);
    else if (dtype == QL_BF16)
        kernels->dots_bf16(y, ldy, x, n, rows, n, n_x, n_rows, n, next);
    else
        kernels->dots_int8(y, ldy, x, n, rows, n_x, n_rows, n, next);
}

void ql_mix_rows(const ql_kernels *kernels, float *y, size_t ldy, const float *p, size_t ldp,
                 const void *rows, ql_dtype dtype, int n_p, size_t n_rows, size_t n,
                 const void *next) {
    if (dtype == QL_F32)
        kernels->mix_f32(y, ldy, p, ldp, rows, n, n_p, n_rows, n, next);
    else if (dtype == QL_BF16)
        kernels->mix_bf16(y, ldy, p, ldp, rows, n, n_p, n_rows, n, next);
    else
        kernels->mix_int8(y, ldy, p, ldp, rows, n_p, n_rows, n, next);
}
