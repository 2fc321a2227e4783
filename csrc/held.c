#include "held.h"

#include <stdlib.h>
#include <string.h>

#include "quant.h"
#include "store.h"
#include "strips.h"
#include "threads.h"

enum { ITEM_ROWS = 64 }; /* whole strips */

/* Where the model holds each matrix nearly as it is stored: of the four ways that with the next
 * number of bits upwards. float16 has no way of its own; bfloat16 takes the same room. */
static const ql_dtype nearest[QL_N_DTYPES] = {
    [QL_F32] = QL_F32,   [QL_F16] = QL_BF16,  [QL_BF16] = QL_BF16, [QL_Q4_0] = QL_Q4,
    [QL_Q4_1] = QL_Q4,   [QL_Q5_0] = QL_INT8, [QL_Q5_1] = QL_INT8, [QL_Q8_0] = QL_INT8,
    [QL_Q2_K] = QL_Q4,   [QL_Q3_K] = QL_Q4,   [QL_Q4_K] = QL_Q4,   [QL_Q5_K] = QL_INT8,
    [QL_Q6_K] = QL_INT8,
};

ql_dtype ql_held_as(ql_dtype asked, ql_dtype from, bool vocabulary) {
    if (asked == QL_STORED) return nearest[from];
    return asked == QL_Q4 && vocabulary ? QL_INT8 : asked;
}

size_t ql_held_bytes(ql_dtype held, size_t n_rows, size_t n) {
    if (held == QL_F32 || held == QL_BF16) return n_rows * n * ql_dtype_block_bytes(held);
    return (n_rows + QL_STRIP - 1) / QL_STRIP * ql_strip_bytes(held, n);
}

typedef struct conversion {
    char *to;
    const uint8_t *from;
    ql_dtype held, stored;
    size_t n_rows, n; /* values of a row */
    size_t row_bytes; /* as stored */
    const ql_kernels *kernels;
    float *rows; /* [n_threads, QL_STRIP, n] */
} conversion;

static void convert_row(const conversion *x, size_t i, float *row) {
    const uint8_t *from = x->from + i * x->row_bytes;
    if (x->held == x->stored) {
        memcpy(x->to + i * x->row_bytes, from, x->row_bytes);
    } else if (x->held == QL_F32) {
        ql_decode((float *)x->to + i * x->n, from, x->stored, x->n);
    } else {
        ql_decode(row, from, x->stored, x->n);
        x->kernels->pack_bf16((uint16_t *)x->to + i * x->n, row, x->n);
    }
}

/* The strip of rows i ... i + n - 1. */
static void convert_strip(const conversion *x, size_t i, int n, float *rows) {
    const uint8_t *from = x->from + i * x->row_bytes;
    uint8_t *to = (uint8_t *)x->to + i / QL_STRIP * ql_strip_bytes(x->held, x->n);
    if (x->held == QL_Q4 && (x->stored == QL_Q4_0 || x->stored == QL_Q4_1)) {
        ql_strip_q4_blocks(to, from, x->stored, n, x->n);
        return;
    }
    ql_decode(rows, from, x->stored, (size_t)n * x->n);
    if (x->held == QL_Q4)
        ql_strip_q4(to, rows, n, x->n);
    else
        ql_strip_int8(to, rows, n, x->n);
}

static void convert_task(void *context, int item, int thread) {
    const conversion *x = context;
    float *rows = x->rows ? x->rows + (size_t)thread * QL_STRIP * x->n : NULL;
    size_t begin = (size_t)item * ITEM_ROWS,
           end = begin + ITEM_ROWS < x->n_rows ? begin + ITEM_ROWS : x->n_rows;
    bool strips = x->held == QL_INT8 || x->held == QL_Q4;
    for (size_t i = begin; i < end; i += strips ? QL_STRIP : 1) {
        if (strips)
            convert_strip(x, i, end - i < QL_STRIP ? (int)(end - i) : QL_STRIP, rows);
        else
            convert_row(x, i, rows);
    }
}

ql_status ql_hold(void *to, ql_dtype held, const void *rows, ql_dtype from, size_t n_rows, size_t n,
                  const ql_kernels *kernels, int n_threads) {
    conversion x = {to, rows, held, from, n_rows, n, 0, kernels, NULL};
    x.row_bytes = n / ql_dtype_block(from) * ql_dtype_block_bytes(from);
    if (held != from && held != QL_F32) {
        x.rows = ql_alloc((size_t)n_threads * QL_STRIP * n * sizeof *x.rows);
        if (!x.rows) return QL_OUT_OF_MEMORY;
    }
    ql_parallel(n_threads, (int)((n_rows + ITEM_ROWS - 1) / ITEM_ROWS), convert_task, &x);
    free(x.rows);
    return QL_OK;
}
