/* retrieval.h - ranking and reusing what a memory has read, by a few retrieval heads.
 * The paper's own lookup is in chunk.c; this works on the un-rotated keys
 * that its pages keep. */
#ifndef QL_RETRIEVAL_H
#define QL_RETRIEVAL_H

#include "memory.h"

/* scores [n_heads, pieces] of the tokens [begin, end) in pieces of piece tokens: mean over the
 * queries of the best key. queries [n_heads, n_queries, D]. */
void ql_rank(const ql_memory *memory, float *scores, const ql_head *heads, int n_heads,
             const float *queries, int n_queries, int64_t begin, int64_t end, int64_t piece);

/* Fills *to (of mode full, empty) with the tokens of ranges [n, 2], at consecutive positions. */
ql_status ql_take_excerpt(ql_memory *to, const ql_memory *from, const int64_t *ranges, int n,
                          ql_error *err);

#endif
