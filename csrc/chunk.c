/* chunk.c - one execution chunk through the memory: begin (all that it needs), attend in each
 * layer (steps 1 to 5 of docs/qllm.md), commit (6 and 7). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "memory.h"
#include "pieces.h"
#include "rope.h"
#include "sizes.h"
#include "threads.h"
#include "tiles.h"

enum { WRITE_TOKENS = 32 };

static int best_blocks(const ql_memory *m) { return (int)ql_min(m->config.topk, m->n_blocks); }

static int retrieved(const ql_memory *m) { return m->pinned ? m->n_pinned : best_blocks(m); }

/* Whether the chunk that was begun looks blocks up. Decided by its position and by what is
 * committed, so that it is the same however the tokens come, and again after an interruption. */
static bool looks_up(const ql_memory *m) {
    return m->chunk.n > 1 || m->config.lookup_interval <= 1 ||
           m->n_tokens % m->config.lookup_interval == 0 || m->n_kept != best_blocks(m);
}

static bool traces_scores(const ql_memory *m) { return m->config.trace == QL_TRACE_SCORES; }

static int64_t local_keys(const ql_memory *m) {
    return m->n_tokens + m->chunk.n - m->chunk.local_first;
}

/* ---- begin: every allocation of a chunk ---- */

/* Makes the pointer at *items hold n of size bytes; what was there is lost. */
static ql_status room(void *items, size_t *capacity, size_t n, size_t size, ql_error *err) {
    if (n <= *capacity) return QL_OK;
    n += n / 2;
    void *old, *memory = ql_alloc(n * size);
    if (!memory)
        return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a chunk's state (%zu bytes)",
                       n * size);
    memcpy(&old, items, sizeof old); /* copied, not cast: pointers of other types may not alias */
    memcpy(items, &memory, sizeof memory);
    free(old);
    *capacity = n;
    return QL_OK;
}

static ql_status tables(ql_memory *m, ql_error *err) {
    size_t half = (size_t)m->heads.head_dim / 2, n = m->chunk.n * half,
           capacity = m->chunk.tables_capacity;
    ql_status status = room(&m->chunk.cos, &capacity, n, sizeof *m->chunk.cos, err);
    if (!status)
        status = room(&m->chunk.sin, &m->chunk.tables_capacity, n, sizeof *m->chunk.sin, err);
    if (!status)
        ql_rope_table(m->chunk.cos, m->chunk.sin, m->inv_freq, (int)half, m->n_tokens, m->chunk.n);
    return status;
}

/* The question's tokens in blocks that every layer attends to: [begin, end). Those that are first
 * tokens or still wait are attended to in any case. */
static void kept_question(const ql_memory *m, int64_t *begin, int64_t *end) {
    bool keeps = m->config.mode == QL_QLLM && m->config.keep_query_tokens && m->n_blocks > 0;
    *begin = keeps ? ql_max(m->question.begin, m->config.n_init) : 0;
    *end = keeps ? ql_max(*begin, ql_min(m->question.end, ql_memory_first_waiting(m))) : 0;
}

/* Most global keys of a chunk in a layer. */
static int64_t most_global(const ql_memory *m) {
    if (ql_memory_sinks_only(m)) return ql_min(m->config.n_init, m->n_tokens);
    if (!ql_memory_has_blocks(m)) return 0;
    int64_t begin, end, gone = m->n_tokens + m->chunk.n - m->config.n_local;
    kept_question(m, &begin, &end);
    return (int64_t)retrieved(m) * m->config.block_size + m->n_first + (end - begin) +
           ql_max(0, gone - ql_memory_first_waiting(m));
}

/* Most spans of a chunk: retrieved blocks, first tokens, question, remainder, window. */
static size_t most_spans(const ql_memory *m) {
    int64_t begin, end,
        pages = ql_memory_full(m) ? m->n_tokens + m->chunk.n
                                  : m->config.n_local + 2 * (m->config.block_size + m->chunk.n);
    kept_question(m, &begin, &end);
    return (size_t)(retrieved(m) + 10 + (end - begin) / m->kv.page_tokens +
                    2 * (pages / m->kv.page_tokens + 2));
}

ql_status ql_memory_begin(ql_memory *m, int n_tokens, ql_error *err) {
    int64_t end = m->n_tokens + n_tokens;
    m->chunk.n = n_tokens;
    m->chunk.local_first = ql_memory_local_first(m);
    ql_status status = ql_kv_reserve(&m->kv, end, err);
    if (!status && ql_memory_skims(m)) status = ql_keys_reserve(&m->keys, end, err);
    if (!status) status = tables(m, err);
    if (!status)
        status = room(&m->chunk.spans, &m->chunk.spans_capacity, most_spans(m),
                      sizeof *m->chunk.spans, err);
    if (!status && ql_memory_has_blocks(m)) {
        int64_t blocks = m->n_blocks + n_tokens / m->config.block_size + 1;
        size_t mass = (size_t)m->heads.n_layers * m->heads.n_heads * (size_t)local_keys(m);
        status = ql_index_reserve(&m->index, blocks, err);
        if (!status)
            status = room(&m->chunk.scores, &m->chunk.scores_capacity, (size_t)blocks,
                          sizeof *m->chunk.scores, err);
        if (!status)
            status =
                room(&m->chunk.mass, &m->chunk.mass_capacity, mass, sizeof *m->chunk.mass, err);
    }
    if (!status && m->config.trace) {
        status = ql_trace_begin(&m->trace, m->heads.n_layers, m->n_tokens, n_tokens,
                                traces_scores(m) ? m->n_blocks : 0, retrieved(m), err);
    }
    if (status) return status;
    if (!ql_memory_full(m))
        ql_window_advance(&m->window, ql_memory_window_first(m), m->n_tokens, end);
    return QL_OK;
}

/* ---- a layer of a chunk ---- */

typedef struct writing {
    ql_memory *m;
    const float *k, *v; /* [T, G*D] */
    int layer;
} writing;

/* Keys and values of WRITE_TOKENS tokens go to their pages, rotated keys to the window. Pages hold
 * keys as far queries will meet them: un-rotated, but at their own positions in mode full and for
 * StreamingLLM's sinks. */
static void write_task(void *context, int item, int thread) {
    (void)thread;
    const writing *x = context;
    ql_memory *m = x->m;
    int D = m->heads.head_dim, G = m->heads.n_kv_heads,
        end = (int)ql_min((item + 1) * WRITE_TOKENS, m->chunk.n);
    float rotated[QL_MAX_HEAD_DIM];
    for (int t = item * WRITE_TOKENS; t < end; t++) {
        int64_t token = m->n_tokens + t;
        bool in_place =
            ql_memory_full(m) || (m->config.mode == QL_STREAM && token < m->config.n_init);
        const float *cos = m->chunk.cos + (size_t)t * (D / 2),
                    *sin = m->chunk.sin + (size_t)t * (D / 2);
        for (int g = 0; g < G; g++) {
            const float *key = x->k + ((size_t)t * G + g) * D,
                        *value = x->v + ((size_t)t * G + g) * D;
            m->kernels->rope(rotated, key, cos, sin, D);
            ql_kv_write(&m->kv, m->kernels, x->layer, token, g, in_place ? rotated : key, value);
            if (!ql_memory_full(m))
                ql_put_row(m->kernels, ql_window_key(&m->window, x->layer, g, token), rotated,
                           m->window.dtype, D);
        }
    }
}

/* Keeps the question's queries that this chunk holds. */
static void hear_question(ql_memory *m, int layer, const float *q) {
    ql_question *question = &m->question;
    int64_t begin = ql_max(question->begin, m->n_tokens),
            end = ql_min(question->end, m->n_tokens + m->chunk.n);
    if (question->known || begin >= end) return;
    size_t span = (size_t)(question->end - question->begin), row = ql_memory_width(m);
    memcpy(question->queries + (layer * span + (size_t)(begin - question->begin)) * row,
           q + (size_t)(begin - m->n_tokens) * row, (size_t)(end - begin) * row * sizeof *q);
}

/* Rotates every head of a vector [H*D] to the far distance. */
static void rotate_far(const ql_memory *m, float *vector) {
    for (int h = 0; h < m->heads.n_heads; h++) {
        float *head = vector + (size_t)h * m->heads.head_dim;
        m->kernels->rope(head, head, m->far_cos, m->far_sin, m->heads.head_dim);
    }
}

/* Sums the chunk's queries, and copies those of the heads that the caller listens to. */
static void listen(ql_memory *m, int layer, const float *q) {
    size_t D = m->heads.head_dim, row = ql_memory_width(m);
    float *sum = m->chunk.sum + layer * row;
    memcpy(sum, q, row * sizeof *sum);
    for (int t = 1; t < m->chunk.n; t++) m->kernels->add(sum, q + t * row, row);
    for (int i = 0; m->chunk.feed && i < m->chunk.feed->n_heads; i++) {
        if (m->chunk.feed->heads[i].layer != layer) continue;
        float *to = m->chunk.feed->queries +
                    ((size_t)i * (size_t)m->chunk.call_tokens + (size_t)m->chunk.heard) * D;
        for (int t = 0; t < m->chunk.n; t++)
            memcpy(to + t * D, q + t * row + m->chunk.feed->heads[i].head * D, D * sizeof *to);
    }
}

void ql_memory_note(ql_memory *m, int layer, const float *q, const float *k) {
    if (ql_memory_ranks(m)) listen(m, layer, q);
    if (ql_memory_skims(m)) ql_keys_write(&m->keys, m->kernels, layer, m->n_tokens, k, m->chunk.n);
}

/* Step 2: the blocks' scores, s(B, H) + beta s(B, Q) (eq. 5-7; the authors' code: the mean query,
 * one choice for all heads). */
static void score_blocks(ql_memory *m, int layer) {
    size_t width = ql_memory_width(m);
    memcpy(m->chunk.query, m->chunk.sum + layer * width, width * sizeof *m->chunk.query);
    m->kernels->scale(m->chunk.query, m->chunk.query, 1.0f / (float)m->chunk.n, width);
    rotate_far(m, m->chunk.query);
    if (m->config.mode == QL_QLLM && m->question.known) {
        const float *question = m->question.vectors + layer * width;
        for (size_t i = 0; i < width; i++)
            m->chunk.query[i] += m->config.question_weight * question[i];
    }
    ql_score_blocks(m->chunk.scores, &m->index, m->kernels, m->n_threads, layer, m->chunk.query,
                    m->n_blocks);
}

/* The blocks that a layer of the chunk retrieves: [retrieved]. */
static const int32_t *retrieve(ql_memory *m, int layer) {
    bool chooses = !m->pinned && retrieved(m) > 0 && looks_up(m);
    int32_t *chosen = m->chunk.chosen + (size_t)layer * (size_t)m->config.topk;
    const int32_t *blocks = m->pinned ? m->pinned
                            : chooses ? chosen
                                      : m->kept + (size_t)layer * (size_t)m->config.topk;
    if (chooses || (traces_scores(m) && m->n_blocks > 0)) score_blocks(m, layer);
    if (chooses) ql_choose(chosen, retrieved(m), m->chunk.scores, m->n_blocks);
    if (m->config.trace) ql_trace_put(&m->trace, layer, blocks, m->chunk.scores);
    return blocks;
}

/* Appends the spans of the tokens [begin, end). */
static int add_spans(const ql_memory *m, int layer, ql_span *spans, int n, int64_t begin,
                     int64_t end) {
    while (begin < end) {
        spans[n] = ql_kv_span(&m->kv, layer, begin, end - begin);
        begin += spans[n++].n;
    }
    return n;
}

/* Appends what is kept of the question, but for what lies in the retrieved blocks (ascending). */
static int add_question(const ql_memory *m, int layer, ql_span *spans, int n,
                        const int32_t *blocks) {
    int64_t begin, end, P = m->config.block_size;
    kept_question(m, &begin, &end);
    for (int i = 0; begin < end;) {
        int64_t block = (begin - m->config.n_init) / P,
                stop = ql_min(end, m->config.n_init + (block + 1) * P);
        while (i < retrieved(m) && blocks[i] < block) i++;
        if (i == retrieved(m) || blocks[i] > block) n = add_spans(m, layer, spans, n, begin, stop);
        begin = stop;
    }
    return n;
}

/* Step 3: {retrieved blocks, first tokens, question, remainder}, in this order: the remainder last,
 * since masks hide its end. */
static int global_spans(const ql_memory *m, int layer, ql_span *spans, const int32_t *blocks) {
    if (ql_memory_full(m)) return 0;
    if (ql_memory_sinks_only(m))
        return add_spans(m, layer, spans, 0, 0, ql_min(m->config.n_init, m->n_tokens));
    int n = 0, P = m->config.block_size;
    for (int i = 0; i < retrieved(m); i++) {
        int64_t token = m->config.n_init + (int64_t)blocks[i] * P;
        n = add_spans(m, layer, spans, n, token, token + P);
    }
    n = add_spans(m, layer, spans, n, 0, m->n_first);
    n = add_question(m, layer, spans, n, blocks);
    int64_t waiting = ql_memory_first_waiting(m);
    return add_spans(m, layer, spans, n, waiting,
                     ql_max(waiting, m->n_tokens + m->chunk.n - m->config.n_local));
}

/* Step 1: the window's keys, rotated, with the values that lie in the pages. */
static int local_spans(const ql_memory *m, int layer, ql_span *spans) {
    int n = add_spans(m, layer, spans, 0, m->chunk.local_first, m->n_tokens + m->chunk.n);
    for (int i = 0; i < n && !ql_memory_full(m); i++) {
        spans[i].k = ql_window_key(&m->window, layer, 0, spans[i].first);
        spans[i].k_stride = ql_window_head_bytes(&m->window);
        spans[i].k_dtype = m->window.dtype;
    }
    return n;
}

void ql_memory_attend(ql_memory *m, int layer, float *out, const float *q, const float *k,
                      const float *v, void *scratch) {
    writing write = {m, k, v, layer};
    int pieces = (m->chunk.n + WRITE_TOKENS - 1) / WRITE_TOKENS;
    ql_parallel(pieces > 1 ? m->n_threads : 1, pieces, write_task, &write);
    hear_question(m, layer, q);
    ql_memory_note(m, layer, q, k);
    int n_global = global_spans(m, layer, m->chunk.spans, retrieve(m, layer));
    int n_local = local_spans(m, layer, m->chunk.spans + n_global);
    ql_attention attention = {
        .kernels = m->kernels,
        .n_threads = m->n_threads,
        .heads = m->heads,
        .dtype = m->config.kv_dtype,
        .n_tokens = m->chunk.n,
        .first = m->n_tokens,
        .reach = m->reach,
        .masks_global = ql_memory_sinks_only(m) || m->config.mask == QL_MASK_EXACT,
        .q = q,
        .cos = m->chunk.cos,
        .sin = m->chunk.sin,
        .far_cos = m->far_cos,
        .far_sin = m->far_sin,
        .global = m->chunk.spans,
        .n_global = n_global,
        .most_global = most_global(m),
        .local = m->chunk.spans + n_global,
        .n_local = n_local,
        .out = out,
        .local_mass = ql_memory_has_blocks(m)
                          ? m->chunk.mass + (size_t)layer * m->heads.n_heads * (size_t)local_keys(m)
                          : NULL,
    };
    if (m->chunk.n == 1)
        ql_attend_pieces(&attention, scratch);
    else
        ql_attend_tiles(&attention, scratch);
}

size_t ql_memory_scratch(const ql_memory *m) {
    int64_t n_global = most_global(m);
    if (m->chunk.n == 1)
        return ql_pieces_scratch(m->heads, n_global + local_keys(m), (int)m->chunk.spans_capacity);
    return ql_tiles_scratch(m->kernels, m->heads, m->config.kv_dtype, m->n_threads, m->chunk.n,
                            n_global, local_keys(m), m->reach);
}

/* ---- commit ---- */

typedef struct commitment {
    ql_memory *m;
    bool asks;                 /* the question's vectors are due */
    int64_t n_first, n_blocks; /* after the chunk */
} commitment;

/* Positions of the k largest of n scores, ties to the earlier one, NaN last: best [k]. */
static void best_tokens(int *best, int k, const float *scores, int n) {
    int found = 0;
    for (int i = 0; i < n; i++) {
        int at = found;
        while (at > 0 && (scores[i] > scores[best[at - 1]] ||
                          (isnan(scores[best[at - 1]]) && !isnan(scores[i]))))
            at--;
        if (at >= k) continue;
        if (found < k) found++;
        memmove(best + at + 1, best + at, (size_t)(found - at - 1) * sizeof *best);
        best[at] = i;
    }
}

/* Step 7: per head the mean of the far queries of the question's tokens that the window attended to
 * most. */
static void set_question(ql_memory *m, int layer, int *best) {
    int D = m->heads.head_dim, span = (int)(m->question.end - m->question.begin),
        k = (int)ql_min(m->config.repr_topk, span);
    float *vector = m->question.vectors + layer * ql_memory_width(m);
    memset(vector, 0, ql_memory_width(m) * sizeof *vector);
    for (int h = 0; h < m->heads.n_heads; h++) {
        best_tokens(best, k, ql_window_scores(&m->window, layer, h, m->question.begin), span);
        for (int i = 0; i < k; i++) {
            const float *query = m->question.queries +
                                 ((size_t)layer * span + best[i]) * ql_memory_width(m) +
                                 (size_t)h * D;
            m->kernels->add(vector + (size_t)h * D, query, D);
        }
    }
    m->kernels->scale(vector, vector, 1.0f / (float)k, ql_memory_width(m));
    rotate_far(m, vector);
}

/* Step 6: a block's vector, per query head the mean of the un-rotated keys of its representative
 * tokens (eq. 4). */
static void represent(ql_memory *m, int layer, int64_t block, int *best) {
    int D = m->heads.head_dim, R = m->config.repr_topk,
        group = m->heads.n_heads / m->heads.n_kv_heads;
    int64_t token = m->config.n_init + block * m->config.block_size;
    ql_span span = ql_kv_span(&m->kv, layer, token, m->config.block_size);
    size_t row = ql_row_bytes(span.k_dtype, D);
    char *vector = ql_index_vector(&m->index, layer, block);
    float mean[QL_MAX_HEAD_DIM], key[QL_MAX_HEAD_DIM];
    for (int h = 0; h < m->heads.n_heads; h++) {
        best_tokens(best, R, ql_window_scores(&m->window, layer, h, token), m->config.block_size);
        memset(mean, 0, D * sizeof *mean);
        for (int i = 0; i < R; i++) {
            const char *keys = (const char *)span.k + h / group * span.k_stride;
            ql_get_row(m->kernels, key, keys + best[i] * row, span.k_dtype, D);
            m->kernels->add(mean, key, D);
        }
        m->kernels->scale(mean, mean, 1.0f / (float)R, D);
        ql_put_row(m->kernels, vector + h * ql_row_bytes(m->index.dtype, D), mean, m->index.dtype,
                   D);
    }
}

/* The chunk's queries count. */
static void add_queries(ql_memory *m, int layer) {
    size_t row = ql_memory_width(m);
    for (size_t i = 0; i < row; i++) m->query_sum[layer * row + i] += m->chunk.sum[layer * row + i];
}

static void commit_task(void *context, int layer, int thread) {
    (void)thread;
    const commitment *c = context;
    ql_memory *m = c->m;
    size_t keys = (size_t)local_keys(m);
    for (int h = 0; h < m->heads.n_heads; h++)
        m->kernels->add(ql_window_scores(&m->window, layer, h, m->chunk.local_first),
                        m->chunk.mass + ((size_t)layer * m->heads.n_heads + h) * keys, keys);
    add_queries(m, layer);
    int best[QL_MAX_REPR];
    if (c->asks) set_question(m, layer, best);
    for (int64_t b = m->n_blocks; b < c->n_blocks; b++) represent(m, layer, b, best);
}

/* A token's own choice of blocks serves the tokens after it. */
static void keep_choice(ql_memory *m) {
    if (!looks_up(m)) return;
    int32_t *kept = m->kept;
    m->kept = m->chunk.chosen;
    m->chunk.chosen = kept;
    m->n_kept = m->chunk.n > 1 || m->pinned ? -1 : best_blocks(m);
}

void ql_memory_commit(ql_memory *m) {
    int64_t end = m->n_tokens + m->chunk.n, P = m->config.block_size, n_local = m->config.n_local;
    keep_choice(m);
    commitment c = {.m = m, .n_first = m->n_first, .n_blocks = m->n_blocks};
    if (ql_memory_has_blocks(m)) {
        int64_t waiting = end - ql_memory_first_waiting(m);
        c.asks = m->config.mode == QL_QLLM && m->question.begin < m->question.end &&
                 !m->question.known && waiting > n_local && m->question.end <= end;
        c.n_first += ql_max(0, ql_min(m->config.n_init - m->n_first, waiting - n_local));
        waiting -= c.n_first - m->n_first;
        if (waiting - P >= n_local) c.n_blocks += (waiting - n_local) / P;
        ql_parallel(m->n_threads, m->heads.n_layers, commit_task, &c);
    } else if (ql_memory_skims(m)) {
        for (int layer = 0; layer < m->heads.n_layers; layer++) add_queries(m, layer);
    }
    if (c.asks) {
        m->n_kept = -1;
        ql_memory_heard(m);
    }
    m->n_first = c.n_first;
    m->n_blocks = c.n_blocks;
    m->n_tokens = end;
    m->chunk.n = 0;
    if (m->config.trace) ql_trace_commit(&m->trace);
    if (ql_memory_sinks_only(m)) ql_kv_drop(&m->kv, end - n_local);
}
