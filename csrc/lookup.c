#include "lookup.h"

#include <math.h>
#include <stdlib.h>

#include "threads.h"

void ql_index_init(ql_index *index, ql_heads heads, ql_dtype dtype) {
    size_t vector = ql_row_bytes(dtype, (size_t)heads.n_heads * heads.head_dim);
    *index = (ql_index){.heads = heads,
                        .dtype = dtype,
                        .slabs = {.slab_bytes = vector * QL_INDEX_BLOCKS * heads.n_layers}};
}

int64_t ql_index_slabs(int64_t n_blocks) {
    return (n_blocks + QL_INDEX_BLOCKS - 1) / QL_INDEX_BLOCKS;
}

int64_t ql_index_full_slabs(int64_t n_blocks) { return n_blocks / QL_INDEX_BLOCKS; }

ql_status ql_index_reserve(ql_index *index, int64_t n_blocks, ql_error *err) {
    return ql_store_reserve(&index->slabs, ql_index_slabs(n_blocks), err);
}

void *ql_index_vector(const ql_index *index, int layer, int64_t block) {
    size_t vector = index->slabs.slab_bytes / QL_INDEX_BLOCKS / index->heads.n_layers;
    char *slab = ql_store_at(&index->slabs, block / QL_INDEX_BLOCKS);
    return slab + ((size_t)layer * QL_INDEX_BLOCKS + (size_t)(block % QL_INDEX_BLOCKS)) * vector;
}

ql_status ql_index_fork(ql_index *to, const ql_index *from, int64_t n_blocks, ql_error *err) {
    *to = *from;
    return ql_store_fork(&to->slabs, &from->slabs, ql_index_full_slabs(n_blocks),
                         ql_index_slabs(n_blocks), err);
}

size_t ql_index_bytes(const ql_index *index) { return ql_store_bytes(&index->slabs); }

typedef struct scoring {
    float *scores;
    const ql_index *index;
    const ql_kernels *kernels;
    const float *query;
    int64_t n_blocks;
    int layer;
} scoring;

static void score_task(void *context, int item, int thread) {
    (void)thread;
    const scoring *x = context;
    int64_t begin = (int64_t)item * QL_INDEX_BLOCKS,
            end = begin + QL_INDEX_BLOCKS < x->n_blocks ? begin + QL_INDEX_BLOCKS : x->n_blocks;
    size_t width = (size_t)x->index->heads.n_heads * x->index->heads.head_dim,
           n = (size_t)(end - begin);
    const void *vectors = ql_index_vector(x->index, x->layer, begin);
    ql_dot_rows(x->kernels, x->scores + begin, n, x->query, vectors, x->index->dtype, 1, n, width,
                NULL);
}

void ql_score_blocks(float *scores, const ql_index *index, const ql_kernels *kernels, int n_threads,
                     int layer, const float *query, int64_t n_blocks) {
    scoring x = {scores, index, kernels, query, n_blocks, layer};
    int n_items = (int)((n_blocks + QL_INDEX_BLOCKS - 1) / QL_INDEX_BLOCKS);
    ql_parallel(n_items > 1 ? n_threads : 1, n_items, score_task, &x);
}

/* Whether block a is a worse choice than b. */
static int worse(const float *scores, int32_t a, int32_t b) {
    float x = isnan(scores[a]) ? -INFINITY : scores[a],
          y = isnan(scores[b]) ? -INFINITY : scores[b];
    return x < y || (x == y && a > b);
}

/* Restores the heap (worst on top) below position i. */
static void sift(int32_t *heap, int k, int i, const float *scores) {
    for (;;) {
        int child = 2 * i + 1;
        if (child >= k) return;
        if (child + 1 < k && worse(scores, heap[child + 1], heap[child])) child++;
        if (!worse(scores, heap[child], heap[i])) return;
        int32_t id = heap[i];
        heap[i] = heap[child];
        heap[child] = id;
        i = child;
    }
}

static int ascending(const void *a, const void *b) {
    return *(const int32_t *)a < *(const int32_t *)b ? -1 : 1;
}

void ql_choose(int32_t *chosen, int k, const float *scores, int64_t n) {
    if (k <= 0) return;
    for (int i = 0; i < k; i++) chosen[i] = i;
    for (int i = k / 2 - 1; i >= 0; i--) sift(chosen, k, i, scores);
    for (int64_t b = k; b < n; b++) {
        if (worse(scores, (int32_t)b, chosen[0])) continue;
        chosen[0] = (int32_t)b;
        sift(chosen, k, 0, scores);
    }
    qsort(chosen, (size_t)k, sizeof *chosen, ascending);
}
