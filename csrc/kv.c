#include "kv.h"

static size_t row_bytes(const ql_kv *kv) { return ql_row_bytes(kv->dtype, kv->heads.head_dim); }

/* Of a layer's keys and values in a slab of so many tokens. */
static size_t layer_bytes(const ql_kv *kv, int tokens) {
    return (size_t)2 * kv->heads.n_kv_heads * tokens * row_bytes(kv);
}

void ql_kv_init(ql_kv *kv, ql_heads heads, ql_dtype dtype, int n_first, int page_tokens) {
    *kv = (ql_kv){.heads = heads, .dtype = dtype, .n_first = n_first, .page_tokens = page_tokens};
    kv->first.slab_bytes = heads.n_layers * layer_bytes(kv, n_first);
    kv->pages.slab_bytes = heads.n_layers * layer_bytes(kv, page_tokens);
}

int64_t ql_kv_pages(const ql_kv *kv, int64_t n_tokens) {
    int64_t rest = n_tokens - kv->n_first;
    return rest > 0 ? (rest + kv->page_tokens - 1) / kv->page_tokens : 0;
}

ql_status ql_kv_reserve(ql_kv *kv, int64_t n_tokens, ql_error *err) {
    ql_status status = QL_OK;
    if (kv->n_first > 0 && n_tokens > 0) status = ql_store_reserve(&kv->first, 1, err);
    if (!status) status = ql_store_reserve(&kv->pages, ql_kv_pages(kv, n_tokens), err);
    return status;
}

/* Where a token lies: the memory of layer's keys in its slab, its row there, and the rows of the
 * slab. */
static unsigned char *locate(const ql_kv *kv, int layer, int64_t token, int *row, int *rows) {
    unsigned char *slab;
    if (token < kv->n_first) {
        slab = ql_store_at(&kv->first, 0);
        *row = (int)token;
        *rows = kv->n_first;
    } else {
        int64_t rest = token - kv->n_first;
        slab = ql_store_at(&kv->pages, rest / kv->page_tokens);
        *row = (int)(rest % kv->page_tokens);
        *rows = kv->page_tokens;
    }
    return slab + layer_bytes(kv, *rows) * (size_t)layer;
}

void ql_kv_write(ql_kv *kv, const ql_kernels *kernels, int layer, int64_t token, int g,
                 const float *key, const float *value) {
    int row, rows, D = kv->heads.head_dim;
    unsigned char *keys = locate(kv, layer, token, &row, &rows);
    size_t head = rows * row_bytes(kv);
    unsigned char *to = keys + g * head + row * row_bytes(kv);
    ql_put_row(kernels, to, key, kv->dtype, D);
    ql_put_row(kernels, to + kv->heads.n_kv_heads * head, value, kv->dtype, D);
}

ql_span ql_kv_span(const ql_kv *kv, int layer, int64_t token, int64_t n) {
    int row, rows;
    const unsigned char *keys = locate(kv, layer, token, &row, &rows);
    size_t head = rows * row_bytes(kv), at = row * row_bytes(kv);
    return (ql_span){.k = keys + at,
                     .v = keys + at + kv->heads.n_kv_heads * head,
                     .k_stride = head,
                     .v_stride = head,
                     .k_dtype = kv->dtype,
                     .v_dtype = kv->dtype,
                     .n = (int)(n < rows - row ? n : rows - row),
                     .first = token};
}

ql_status ql_kv_fork(ql_kv *to, const ql_kv *from, int64_t n_tokens, ql_error *err) {
    *to = *from;
    int64_t full = ql_kv_full_pages(from, n_tokens);
    ql_status status =
        ql_store_fork(&to->first, &from->first, n_tokens >= from->n_first ? from->first.n : 0,
                      from->first.n, err);
    if (status) {
        to->pages = (ql_store){0};
        return status;
    }
    status = ql_store_fork(&to->pages, &from->pages, full, ql_kv_pages(from, n_tokens), err);
    if (status) ql_store_clear(&to->first);
    return status;
}

int64_t ql_kv_full_pages(const ql_kv *kv, int64_t n_tokens) {
    return n_tokens > kv->n_first ? (n_tokens - kv->n_first) / kv->page_tokens : 0;
}

void ql_kv_drop(ql_kv *kv, int64_t token) {
    if (token > kv->n_first) ql_store_drop(&kv->pages, (token - kv->n_first) / kv->page_tokens);
}

size_t ql_kv_clear(ql_kv *kv) { return ql_store_clear(&kv->first) + ql_store_clear(&kv->pages); }

size_t ql_kv_bytes(const ql_kv *kv) {
    return ql_store_bytes(&kv->first) + ql_store_bytes(&kv->pages);
}
