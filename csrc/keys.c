#include "keys.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

static size_t row_bytes(const ql_keys *keys) {
    return ql_row_bytes(keys->dtype, keys->heads.head_dim);
}

static ql_status allocate(ql_keys *keys, ql_error *err) {
    size_t places = (size_t)keys->heads.n_layers * keys->heads.n_kv_heads;
    keys->place = ql_alloc(places * sizeof *keys->place);
    if (keys->place) return QL_OK;
    return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for the places of %zu key heads", places);
}

static int *place_of(const ql_keys *keys, int layer, int g) {
    return &keys->place[(size_t)layer * keys->heads.n_kv_heads + g];
}

ql_status ql_keys_init(ql_keys *keys, ql_heads heads, ql_dtype dtype, const ql_head *kept,
                       int n_kept, ql_error *err) {
    *keys = (ql_keys){.heads = heads, .dtype = dtype};
    ql_status status = allocate(keys, err);
    if (status) return status;
    size_t places = (size_t)heads.n_layers * heads.n_kv_heads;
    for (size_t i = 0; i < places; i++) keys->place[i] = -1;
    for (int i = 0; i < n_kept; i++) {
        int *place =
            place_of(keys, kept[i].layer, kept[i].head / (heads.n_heads / heads.n_kv_heads));
        if (*place < 0) *place = keys->n++;
    }
    keys->slabs.slab_bytes = keys->n * QL_KEYS_TOKENS * row_bytes(keys);
    return QL_OK;
}

bool ql_keys_holds(const ql_keys *keys, int layer, int g) {
    return keys->n > 0 && *place_of(keys, layer, g) >= 0;
}

int64_t ql_keys_slabs(int64_t n_tokens) { return (n_tokens + QL_KEYS_TOKENS - 1) / QL_KEYS_TOKENS; }

int64_t ql_keys_full_slabs(int64_t n_tokens) { return n_tokens / QL_KEYS_TOKENS; }

ql_status ql_keys_reserve(ql_keys *keys, int64_t n_tokens, ql_error *err) {
    return ql_store_reserve(&keys->slabs, ql_keys_slabs(n_tokens), err);
}

static unsigned char *row_at(const ql_keys *keys, int layer, int g, int64_t token) {
    size_t row =
        (size_t)*place_of(keys, layer, g) * QL_KEYS_TOKENS + (size_t)(token % QL_KEYS_TOKENS);
    return (unsigned char *)ql_store_at(&keys->slabs, token / QL_KEYS_TOKENS) +
           row * row_bytes(keys);
}

void ql_keys_write(ql_keys *keys, const ql_kernels *kernels, int layer, int64_t first,
                   const float *k, int n) {
    size_t G = keys->heads.n_kv_heads, D = keys->heads.head_dim;
    for (size_t g = 0; g < G; g++) {
        if (!ql_keys_holds(keys, layer, (int)g)) continue;
        for (int t = 0; t < n; t++)
            ql_put_row(kernels, row_at(keys, layer, (int)g, first + t), k + (t * G + g) * D,
                       keys->dtype, D);
    }
}

ql_span ql_keys_span(const ql_keys *keys, int layer, int g, int64_t token, int64_t n) {
    int64_t rest = QL_KEYS_TOKENS - token % QL_KEYS_TOKENS;
    return (ql_span){.k = row_at(keys, layer, g, token),
                     .k_dtype = keys->dtype,
                     .n = (int)(n < rest ? n : rest),
                     .first = token};
}

ql_status ql_keys_fork(ql_keys *to, const ql_keys *from, int64_t n_tokens, ql_error *err) {
    *to = *from;
    to->slabs = (ql_store){0};
    if (!from->n) return QL_OK;
    ql_status status = allocate(to, err);
    if (status) return status;
    size_t places = (size_t)from->heads.n_layers * from->heads.n_kv_heads;
    memcpy(to->place, from->place, places * sizeof *to->place);
    status = ql_store_fork(&to->slabs, &from->slabs, ql_keys_full_slabs(n_tokens),
                           ql_keys_slabs(n_tokens), err);
    if (status) ql_keys_clear(to);
    return status;
}

void ql_keys_forget(ql_keys *keys) { ql_store_clear(&keys->slabs); }

size_t ql_keys_clear(ql_keys *keys) {
    size_t freed = ql_store_clear(&keys->slabs);
    free(keys->place);
    *keys = (ql_keys){0};
    return freed;
}

size_t ql_keys_bytes(const ql_keys *keys) { return keys->n ? ql_store_bytes(&keys->slabs) : 0; }
