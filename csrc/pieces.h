/* pieces.h - attention of one query (a token that is being generated): keys and values where they
 * lie, in their own number format, in pieces of some hundred keys that are joined at the end. */
#ifndef QL_PIECES_H
#define QL_PIECES_H

#include "attention.h"

/* Bytes of scratch for n_keys keys in at most n_spans spans. */
size_t ql_pieces_scratch(ql_heads heads, int64_t n_keys, int n_spans);

void ql_attend_pieces(const ql_attention *a, void *scratch); /* a->n_tokens is 1 */

#endif
