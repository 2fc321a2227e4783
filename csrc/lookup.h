/* lookup.h - the memory blocks' vectors, and which blocks a query vector chooses (the paper's eq.
 * 5-7). */
#ifndef QL_LOOKUP_H
#define QL_LOOKUP_H

#include "kv.h"

enum { QL_INDEX_BLOCKS = 64 }; /* of a slab */

typedef struct ql_index { /* one vector per block and layer */
    ql_heads heads;
    ql_dtype dtype; /* QL_F32 or QL_BF16 */
    ql_store slabs; /* a slab: [L, blocks of a slab, H*D] */
} ql_index;

void ql_index_init(ql_index *index, ql_heads heads, ql_dtype dtype);
/* Slabs that n_blocks blocks need, and those of them that are full. */
int64_t ql_index_slabs(int64_t n_blocks);
int64_t ql_index_full_slabs(int64_t n_blocks);
ql_status ql_index_reserve(ql_index *index, int64_t n_blocks, ql_error *err);
/* Vector [H*D] of a block in a layer, in the index's dtype. */
void *ql_index_vector(const ql_index *index, int layer, int64_t block);
ql_status ql_index_fork(ql_index *to, const ql_index *from, int64_t n_blocks, ql_error *err);
size_t ql_index_bytes(const ql_index *index);

/* scores [n_blocks] = <query, vector(b)>; query [H*D]. */
void ql_score_blocks(float *scores, const ql_index *index, const ql_kernels *kernels, int n_threads,
                     int layer, const float *query, int64_t n_blocks);

/* The best k of n scores (k <= n), ties to the lower id, NaN last: chosen [k], ascending. */
void ql_choose(int32_t *chosen, int k, const float *scores, int64_t n);

#endif
