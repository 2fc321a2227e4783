/* kv.h - keys and values of all layers in pages: one page of the first tokens, then pages of
 * page_tokens tokens each. A page is a memory block of the paper: a token is written once to where
 * it stays, nothing is copied when it leaves the window. */
#ifndef QL_KV_H
#define QL_KV_H

#include "rows.h"
#include "store.h"

enum { QL_MAX_HEAD_DIM = 1024 };

typedef struct ql_heads {
    int n_layers, n_heads, n_kv_heads, head_dim; /* L, H, G, D */
} ql_heads;

/* A run of tokens of one layer whose keys and values lie together, in rows; kv head g's lie g *
 * stride bytes further on. */
typedef struct ql_span {
    const void *k, *v; /* [n, D] */
    size_t k_stride, v_stride;
    ql_dtype k_dtype, v_dtype;
    int n;
    int64_t first; /* position of the first token */
} ql_span;

typedef struct ql_kv {
    ql_heads heads;
    ql_dtype dtype; /* QL_F32, QL_BF16 or QL_INT8 */
    int n_first, page_tokens;
    ql_store first, pages; /* a slab: rows [L, 2 (keys, values), G, tokens] */
} ql_kv;

void ql_kv_init(ql_kv *kv, ql_heads heads, ql_dtype dtype, int n_first, int page_tokens);
/* Room for n_tokens tokens in all. */
ql_status ql_kv_reserve(ql_kv *kv, int64_t n_tokens, ql_error *err);
/* Pages that n_tokens tokens need, and those of them that are full. */
int64_t ql_kv_pages(const ql_kv *kv, int64_t n_tokens);
int64_t ql_kv_full_pages(const ql_kv *kv, int64_t n_tokens);
/* Stores key [D] and value [D] of one token and kv head. */
void ql_kv_write(ql_kv *kv, const ql_kernels *kernels, int layer, int64_t token, int g,
                 const float *key, const float *value);
/* The run that starts at token, of at most n tokens. */
ql_span ql_kv_span(const ql_kv *kv, int layer, int64_t token, int64_t n);
/* Makes *to (uninitialised) hold the first n_tokens tokens of *from. */
ql_status ql_kv_fork(ql_kv *to, const ql_kv *from, int64_t n_tokens, ql_error *err);
void ql_kv_drop(ql_kv *kv,
                int64_t token); /* forgets whole pages before token, the first tokens excepted */
size_t ql_kv_clear(ql_kv *kv);  /* bytes that nobody else has */
size_t ql_kv_bytes(const ql_kv *kv);

#endif
