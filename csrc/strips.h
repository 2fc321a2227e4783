/* strips.h - weights of few bits as they lie in memory (kernels.h: ql_integers): into strips, and
 * out of them again. */
#ifndef QL_STRIPS_H
#define QL_STRIPS_H

#include "kernels.h"
#include "ql.h"

/* Bytes of a strip of QL_STRIP rows of n_in numbers; dtype QL_INT8 or QL_Q4. */
size_t ql_strip_bytes(ql_dtype dtype, size_t n_in);

/* Strips from float32: rows [n, n_in], 1 <= n <= QL_STRIP. A row (of q4: a block) with a number
 * that is not finite, or too large for a float16, becomes NaN.
 * int8: the scale is the largest absolute value / 127. q4: d and m span each block's values. */
void ql_strip_int8(uint8_t *strip, const float *rows, int n, size_t n_in);
void ql_strip_q4(uint8_t *strip, const float *rows, int n, size_t n_in);

/* The same numbers as in rows of GGUF's blocks, dtype QL_Q4_0 or QL_Q4_1: blocks [n, n_in / 32],
 * any alignment. */
void ql_strip_q4_blocks(uint8_t *strip, const uint8_t *blocks, ql_dtype dtype, int n, size_t n_in);

/* Row i of a strip as float32: y [n_in]. */
void ql_strip_row(float *y, const uint8_t *strip, ql_dtype dtype, int i, size_t n_in);

#endif
