#include "retrieval.h"

#include <math.h>

#include "threads.h"

enum { MOST_KEYS = 128, ITEM_TOKENS = 2048 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- rank ---- */

typedef struct ranking {
    const ql_memory *m;
    float *scores;
    const ql_head *heads;
    const float *queries;
    int n_heads, n_queries;
    int64_t begin, end, piece, n_pieces, item_pieces;
} ranking;

/* best [n] over the keys of tokens [from, to) of one head: the largest product with each of n <=
 * QL_FEW_ROWS queries [n, D]. */
static void best_keys(const ranking *r, float *best, ql_head head, const float *queries, int n,
                      int64_t from, int64_t to) {
    const ql_memory *m = r->m;
    size_t D = m->heads.head_dim;
    int g = head.head / (m->heads.n_heads / m->heads.n_kv_heads);
    float products[QL_FEW_ROWS * MOST_KEYS];
    for (int i = 0; i < n; i++) best[i] = -INFINITY;
    while (from < to) {
        int64_t most = min64(MOST_KEYS, to - from);
        ql_span span = ql_memory_skims(m) ? ql_keys_span(&m->keys, head.layer, g, from, most)
                                          : ql_kv_span(&m->kv, head.layer, from, most);
        size_t n_keys = (size_t)span.n;
        ql_dot_rows(m->kernels, products, n_keys, queries, (const char *)span.k + g * span.k_stride,
                    span.k_dtype, n, n_keys, D);
        for (int i = 0; i < n; i++) {
            float top = m->kernels->max(products + i * n_keys, n_keys);
            if (top > best[i]) best[i] = top;
        }
        from += span.n;
    }
}

static void rank_task(void *context, int item, int thread) {
    (void)thread;
    const ranking *r = context;
    size_t D = r->m->heads.head_dim;
    int h = (int)(item % r->n_heads);
    int64_t first = item / r->n_heads * r->item_pieces,
            last = min64(first + r->item_pieces, r->n_pieces);
    const float *queries = r->queries + (size_t)h * r->n_queries * D;
    for (int64_t p = first; p < last; p++) {
        int64_t from = r->begin + p * r->piece, to = min64(from + r->piece, r->end);
        float sum = 0, best[QL_FEW_ROWS];
        for (int q = 0; q < r->n_queries; q += QL_FEW_ROWS) {
            int n = (int)min64(QL_FEW_ROWS, r->n_queries - q);
            best_keys(r, best, r->heads[h], queries + q * D, n, from, to);
            for (int i = 0; i < n; i++) sum += best[i];
        }
        r->scores[h * r->n_pieces + p] = sum / (float)r->n_queries;
    }
}

void ql_rank(const ql_memory *m, float *scores, const ql_head *heads, int n_heads,
             const float *queries, int n_queries, int64_t begin, int64_t end, int64_t piece) {
    ranking r = {m,         scores, heads, queries, n_heads,
                 n_queries, begin,  end,   piece,   (end - begin + piece - 1) / piece,
                 0};
    r.item_pieces = ITEM_TOKENS / piece > 1 ? ITEM_TOKENS / piece : 1;
    int64_t n_items = (r.n_pieces + r.item_pieces - 1) / r.item_pieces * n_heads;
    ql_parallel(m->n_threads, (int)n_items, rank_task, &r);
}

/* ---- excerpt ---- */

typedef struct excerpt {
    ql_memory *to;
    const ql_memory *from;
    const int64_t *ranges; /* [n, 2] */
    int n;
    const float *cos, *sin; /* [tokens, D/2] of the new positions */
} excerpt;

static void excerpt_task(void *context, int layer, int thread) {
    (void)thread;
    const excerpt *x = context;
    ql_heads heads = x->to->heads;
    const ql_kernels *kernels = x->to->kernels;
    size_t D = heads.head_dim;
    float key[QL_MAX_HEAD_DIM], value[QL_MAX_HEAD_DIM];
    int64_t at = 0;
    for (int i = 0; i < x->n; i++) {
        for (int64_t token = x->ranges[2 * i]; token < x->ranges[2 * i + 1]; token++, at++) {
            ql_span span = ql_kv_span(&x->from->kv, layer, token, 1);
            for (int g = 0; g < heads.n_kv_heads; g++) {
                ql_get_row(kernels, key, (const char *)span.k + g * span.k_stride, span.k_dtype, D);
                ql_get_row(kernels, value, (const char *)span.v + g * span.v_stride, span.v_dtype,
                           D);
                kernels->rope(key, key, x->cos + at * (D / 2), x->sin + at * (D / 2), D);
                ql_kv_write(&x->to->kv, kernels, layer, at, g, key, value);
            }
        }
    }
}

ql_status ql_take_excerpt(ql_memory *to, const ql_memory *from, const int64_t *ranges, int n,
                          ql_error *err) {
    int64_t tokens = 0;
    for (int i = 0; i < n; i++) tokens += ranges[2 * i + 1] - ranges[2 * i];
    ql_status status = ql_memory_begin(
        to, (int)tokens, err); /* also makes the tables of positions 0 ... tokens - 1 */
    if (status) return status;
    excerpt x = {to, from, ranges, n, to->cos, to->sin};
    ql_parallel(to->n_threads, to->heads.n_layers, excerpt_task, &x);
    ql_memory_commit(to);
    return QL_OK;
}
