#include "retrieval.h"

#include <math.h>

#include "sizes.h"
#include "threads.h"

/* Keys of a product at once; tokens of an item of work; most head_dim of products by panels. */
enum { MOST_KEYS = 64, ITEM_TOKENS = 2048, PANEL_DIM = 128 };

/* ---- rank ---- */

typedef struct ranking {
    const ql_memory *m;
    float *scores;
    const ql_head *heads;
    const float *queries;
    int n_heads, n_queries;
    int64_t begin, end, piece, n_pieces, item_pieces;
} ranking;

/* Some of a head's queries, those of a panel or as many as the few-row kernels take, with room for
 * their products with some keys. */
typedef struct few_queries {
    ql_head head;
    int n;
    const float *queries;    /* [n, D] */
    const ql_panels *panels; /* or NULL: by the few-row kernels */
    union {                  /* [D, columns] in the panels' format */
        float f32[QL_PANEL * PANEL_DIM];
        uint16_t bf16[QL_PANEL * PANEL_DIM];
    } panel __attribute__((aligned(64)));
    union {
        float keys[MOST_KEYS * PANEL_DIM];      /* [MOST_KEYS, D], for a panel of float32 */
        uint16_t queries[QL_PANEL * PANEL_DIM]; /* [n, D], on their way into one of bfloat16 */
    } rows;
    float products[MOST_KEYS * QL_PANEL] __attribute__((aligned(64)));
} few_queries;

static ql_dtype kept_dtype(const ql_memory *m) {
    return ql_memory_skims(m) ? m->keys.dtype : m->config.kv_dtype;
}

/* The next of the queries from q on. By a panel they take the time of all its columns:
 * where they fill hardly a third of them, the few-row kernels take less. So they do where keys are
 * kept as float32 or int8. */
static void take_queries(const ranking *r, few_queries *few, ql_head head, const float *q,
                         int left) {
    const ql_kernels *kernels = r->m->kernels;
    size_t D = (size_t)r->m->heads.head_dim;
    bool rounded = kernels->panels != NULL, fits = D <= PANEL_DIM && kept_dtype(r->m) == QL_BF16;
    const ql_panels *panels = rounded ? kernels->panels : kernels->panels_f32;
    few->head = head;
    few->queries = q;
    few->n = (int)ql_min(panels->columns, left);
    few->panels = fits && 3 * few->n > panels->columns ? panels : NULL;
    if (!few->panels) {
        few->n = (int)ql_min(QL_FEW_ROWS, left);
    } else if (rounded) {
        kernels->pack_bf16(few->rows.queries, q, (size_t)few->n * D);
        panels->pack_rows(&few->panel, few->rows.queries, D, few->n, D);
    } else {
        panels->pack_rows(&few->panel, q, D, few->n, D);
    }
}

/* best [n]: the largest products, each at least as it is, with n_keys <= MOST_KEYS keys as they are
 * kept. */
static void meet_keys(const ranking *r, few_queries *few, float *best, const char *keys,
                      ql_dtype dtype, size_t n_keys) {
    const ql_kernels *kernels = r->m->kernels;
    const ql_panels *panels = few->panels;
    size_t D = (size_t)r->m->heads.head_dim;
    float *products = few->products;
    if (!panels) {
        ql_dot_rows(kernels, products, n_keys, few->queries, keys, dtype, few->n, n_keys, D, NULL);
        for (int i = 0; i < few->n; i++) {
            float top = kernels->max(products + i * n_keys, n_keys);
            if (top > best[i]) best[i] = top;
        }
        return;
    }
    const void *rows = keys;
    if (panels->item == sizeof(float)) {
        kernels->unpack_bf16(few->rows.keys, (const uint16_t *)keys, n_keys * D);
        rows = few->rows.keys;
    }
    /* All columns: storing part of a row of products takes longer than computing all of it. */
    int wide = panels->columns;
    panels->multiply(products, (size_t)wide, rows, D, &few->panel, 0, (int)n_keys, wide, D, false);
    for (size_t i = 0; i < n_keys; i++, products += wide)
        for (int j = 0; j < few->n; j++) best[j] = products[j] > best[j] ? products[j] : best[j];
}

/* The sum over the queries of the largest product with a key of the tokens [from, to). */
static float sum_of_best(const ranking *r, few_queries *few, int64_t from, int64_t to) {
    const ql_memory *m = r->m;
    int layer = few->head.layer, g = few->head.head / (m->heads.n_heads / m->heads.n_kv_heads);
    float best[QL_PANEL], sum = 0;
    for (int i = 0; i < few->n; i++) best[i] = -INFINITY;
    for (int64_t n; from < to; from += n) {
        int64_t most = ql_min(MOST_KEYS, to - from);
        ql_span span = ql_memory_skims(m) ? ql_keys_span(&m->keys, layer, g, from, most)
                                          : ql_kv_span(&m->kv, layer, from, most);
        n = span.n;
        meet_keys(r, few, best, (const char *)span.k + g * span.k_stride, span.k_dtype, (size_t)n);
    }
    for (int i = 0; i < few->n; i++) sum += best[i];
    return sum;
}

static void rank_task(void *context, int item, int thread) {
    (void)thread;
    const ranking *r = context;
    size_t D = (size_t)r->m->heads.head_dim;
    int h = item % r->n_heads;
    int64_t first = item / r->n_heads * r->item_pieces,
            last = ql_min(first + r->item_pieces, r->n_pieces);
    const float *queries = r->queries + (size_t)h * (size_t)r->n_queries * D;
    float *scores = r->scores + h * r->n_pieces;
    few_queries few;
    for (int64_t p = first; p < last; p++) scores[p] = 0;
    for (int q = 0; q < r->n_queries; q += few.n) {
        take_queries(r, &few, r->heads[h], queries + (size_t)q * D, r->n_queries - q);
        for (int64_t p = first; p < last; p++) {
            int64_t from = r->begin + p * r->piece;
            scores[p] += sum_of_best(r, &few, from, ql_min(from + r->piece, r->end));
        }
    }
    for (int64_t p = first; p < last; p++) scores[p] /= (float)r->n_queries;
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
    excerpt x = {to, from, ranges, n, to->chunk.cos, to->chunk.sin};
    ql_parallel(to->n_threads, to->heads.n_layers, excerpt_task, &x);
    ql_memory_commit(to);
    return QL_OK;
}
