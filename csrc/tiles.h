/* tiles.h - attention of many queries. A tile is one kv head by some consecutive queries; the query
 * heads that share the kv head are stacked as rows of one matrix, so that a product prepares the
 * keys once for all of them. Tiles depend on the chunk alone, never on the number of threads.
 *
 * Two ways of multiplying: panels of bfloat16 where keys and values are not kept as float32 and the
 * CPU multiplies bfloat16, else panels of float32. */
#ifndef QL_TILES_H
#define QL_TILES_H

#include "attention.h"

/* What attention over at most n_global + n_local keys needs. */
size_t ql_tiles_scratch(const ql_kernels *kernels, ql_heads heads, ql_dtype dtype, int n_threads,
                        int n_tokens, int64_t n_global, int64_t n_local, int64_t reach);

void ql_attend_tiles(const ql_attention *a, void *scratch);

#endif
