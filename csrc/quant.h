/* quant.h - how numbers lie in files and in memory: sizes, and conversion of any stored dtype to
 * float32. */
#ifndef QL_QUANT_H
#define QL_QUANT_H

#include "ql.h"

size_t ql_dtype_block(ql_dtype dtype);       /* values in one block: 1, 32 or 256 */
size_t ql_dtype_block_bytes(ql_dtype dtype); /* bytes of one block */

/* Decodes n values, a multiple of ql_dtype_block, stored at x (any alignment) to y [n]. */
void ql_decode(float *y, const void *x, ql_dtype dtype, size_t n);

#endif
