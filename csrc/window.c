#include "window.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

static size_t key_rows(const ql_window *w) {
    return (size_t)w->heads.n_layers * w->heads.n_kv_heads;
}
static size_t score_rows(const ql_window *w) {
    return (size_t)w->heads.n_layers * w->heads.n_heads;
}
static size_t key_bytes(const ql_window *w) { return ql_row_bytes(w->dtype, w->heads.head_dim); }

size_t ql_window_head_bytes(const ql_window *w) { return w->capacity * key_bytes(w); }

size_t ql_window_bytes(const ql_window *w) {
    return (size_t)w->capacity * (key_rows(w) * key_bytes(w) + score_rows(w) * sizeof *w->scores);
}

static ql_status allocate(ql_window *w, ql_error *err) {
    w->keys = ql_alloc(key_rows(w) * w->capacity * key_bytes(w));
    w->scores = ql_alloc(score_rows(w) * w->capacity * sizeof *w->scores);
    if (w->keys && w->scores) return QL_OK;
    int capacity = w->capacity;
    ql_window_clear(w);
    return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a window of %d tokens", capacity);
}

ql_status ql_window_init(ql_window *w, ql_heads heads, ql_dtype dtype, int most, ql_error *err) {
    *w = (ql_window){.heads = heads, .dtype = dtype, .capacity = 2 * most};
    return allocate(w, err);
}

void *ql_window_key(const ql_window *w, int layer, int g, int64_t token) {
    size_t row = (size_t)layer * w->heads.n_kv_heads + g;
    return (char *)w->keys + (row * w->capacity + (size_t)(token - w->first)) * key_bytes(w);
}

float *ql_window_scores(const ql_window *w, int layer, int h, int64_t token) {
    size_t row = (size_t)layer * w->heads.n_heads + h;
    return w->scores + row * w->capacity + (size_t)(token - w->first);
}

void ql_window_advance(ql_window *w, int64_t keep, int64_t begin, int64_t end) {
    if (end - w->first > w->capacity) {
        size_t shift = (size_t)(keep - w->first), n = (size_t)(begin - keep);
        for (size_t i = 0; i < key_rows(w); i++) {
            char *row = (char *)w->keys + i * w->capacity * key_bytes(w);
            memmove(row, row + shift * key_bytes(w), n * key_bytes(w));
        }
        for (size_t i = 0; i < score_rows(w); i++) {
            float *row = w->scores + i * w->capacity;
            memmove(row, row + shift, n * sizeof *row);
        }
        w->first = keep;
    }
    for (size_t i = 0; i < score_rows(w); i++)
        memset(w->scores + i * w->capacity + (begin - w->first), 0,
               (size_t)(end - begin) * sizeof *w->scores);
}

ql_status ql_window_fork(ql_window *to, const ql_window *from, int64_t end, ql_error *err) {
    *to = *from;
    ql_status status = allocate(to, err);
    if (status) return status;
    size_t n = (size_t)(end - from->first), keys = from->capacity * key_bytes(from);
    for (size_t i = 0; i < key_rows(from); i++)
        memcpy((char *)to->keys + i * keys, (const char *)from->keys + i * keys,
               n * key_bytes(from));
    for (size_t i = 0; i < score_rows(from); i++)
        memcpy(to->scores + i * from->capacity, from->scores + i * from->capacity,
               n * sizeof *to->scores);
    return QL_OK;
}

size_t ql_window_key_bytes(const ql_window *w, int64_t n) {
    return key_rows(w) * (size_t)n * key_bytes(w);
}

size_t ql_window_score_bytes(const ql_window *w, int64_t n) {
    return score_rows(w) * (size_t)n * sizeof *w->scores;
}

void ql_window_take(const ql_window *w, int64_t begin, int64_t end, void *keys, float *scores) {
    size_t n = (size_t)(end - begin), bytes = n * key_bytes(w);
    for (size_t i = 0; keys && i < key_rows(w); i++)
        memcpy((char *)keys + i * bytes,
               (char *)w->keys + (i * w->capacity + (size_t)(begin - w->first)) * key_bytes(w),
               bytes);
    for (size_t i = 0; scores && i < score_rows(w); i++)
        memcpy(scores + i * n, w->scores + i * w->capacity + (begin - w->first),
               n * sizeof *scores);
}

void ql_window_put(ql_window *w, int64_t begin, int64_t end, const void *keys,
                   const float *scores) {
    size_t n = (size_t)(end - begin), bytes = n * key_bytes(w);
    w->first = begin;
    for (size_t i = 0; i < key_rows(w); i++)
        memcpy((char *)w->keys + i * w->capacity * key_bytes(w), (const char *)keys + i * bytes,
               bytes);
    for (size_t i = 0; i < score_rows(w); i++)
        memcpy(w->scores + i * w->capacity, scores + i * n, n * sizeof *scores);
}

void ql_window_clear(ql_window *w) {
    free(w->keys);
    free(w->scores);
    w->keys = NULL;
    w->scores = NULL;
    w->capacity = 0;
}
