/* attention.h - one softmax over local and global keys (the paper's eq. 3): local keys at their
 * true distance, global keys all at one far distance. Knows spans of keys, not why they were
 * chosen. */
#ifndef QL_ATTENTION_H
#define QL_ATTENTION_H

#include "kv.h"

typedef struct ql_attention {
    const ql_kernels *kernels;
    int n_threads;
    ql_heads heads;
    ql_dtype dtype; /* QL_F32: many queries are multiplied with keys and values in float32 */
    int n_tokens;   /* T queries, at the positions first, first + 1, ... */
    int64_t first;
    int64_t reach;     /* a query sees the local keys at distances 0 ... reach - 1 */
    bool masks_global; /* and the global keys from distance reach on; without it, all of them */
    const float *q;    /* [T, H*D], not rotated */
    const float *cos, *sin;         /* [T, D/2] of the queries' positions */
    const float *far_cos, *far_sin; /* [D/2] of the far distance */
    /* Those that every query sees first, then by ascending position; keys as far queries meet
     * them. */
    const ql_span *global;
    /* Contiguous positions up to that of the last query; keys rotated to their positions. */
    const ql_span *local;
    int n_global, n_local; /* spans */
    int64_t most_global;   /* global keys that the scratch was measured for: at least those here */
    float *out;            /* [T, H*D] */
    float
        *local_mass; /* [H, local keys]: each key's probability summed over the queries; or NULL */
} ql_attention;

/* How many of the global keys the query at position p sees: a prefix, by the order of the spans. */
int64_t ql_visible_global(const ql_attention *a, int64_t p);

int64_t ql_count_keys(const ql_span *spans, int n);

#endif
