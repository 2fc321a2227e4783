/* keys.h - un-rotated keys of a few kv heads, of every token that was read: what ranking needs
 * where the memory forgets. Kept in slabs that forks share once they are full. */
#ifndef QL_KEYS_H
#define QL_KEYS_H

#include "kv.h"

enum { QL_KEYS_TOKENS = 512 }; /* of a slab */

typedef struct ql_keys {
    ql_heads heads;
    ql_dtype dtype;
    int n;          /* kv heads kept; 0: none */
    int *place;     /* [L, G]: place of a kv head in a slab; negative: not kept */
    ql_store slabs; /* a slab: rows [n, tokens of a slab] */
} ql_keys;

/* Keeps the keys that the query heads kept [n_kept] (valid) meet. */
ql_status ql_keys_init(ql_keys *keys, ql_heads heads, ql_dtype dtype, const ql_head *kept,
                       int n_kept, ql_error *err);
/* Whether the keys of a layer's kv head g are kept. */
bool ql_keys_holds(const ql_keys *keys, int layer, int g);
/* Slabs that n_tokens tokens need, and those of them that are full. */
int64_t ql_keys_slabs(int64_t n_tokens);
int64_t ql_keys_full_slabs(int64_t n_tokens);
/* Room for n_tokens tokens in all. */
ql_status ql_keys_reserve(ql_keys *keys, int64_t n_tokens, ql_error *err);
/* Stores a layer's keys k [n, G*D] of the tokens from first on, as far as they are kept. */
void ql_keys_write(ql_keys *keys, const ql_kernels *kernels, int layer, int64_t first,
                   const float *k, int n);
/* The run of keys [n, D] of one kv head (kept) that starts at token, of at most n tokens. No
 * values, and no other heads. */
ql_span ql_keys_span(const ql_keys *keys, int layer, int g, int64_t token, int64_t n);
/* Makes *to (uninitialised) hold the first n_tokens tokens of *from. */
ql_status ql_keys_fork(ql_keys *to, const ql_keys *from, int64_t n_tokens, ql_error *err);
void ql_keys_forget(ql_keys *keys);  /* all tokens; the same heads are kept from now on */
size_t ql_keys_clear(ql_keys *keys); /* frees; bytes that nobody else has */
size_t ql_keys_bytes(const ql_keys *keys);

#endif
