#include "memory.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "rope.h"

enum { FULL_PAGE = 64 };
static const int64_t NO_REACH = INT64_MAX / 2;

/* ---- life ---- */

/* Every far key is n_local - 1 away (the paper's A.2); StreamingLLM's sinks keep their places
 * before the window instead. */
static void far_angle(ql_memory *m) {
    int64_t distance = m->config.n_local - 1 + (m->config.mode == QL_STREAM ? m->config.n_init : 0);
    ql_rope_table(m->far_cos, m->far_sin, m->inv_freq, m->heads.head_dim / 2, distance, 1);
}

/* The sums of queries, all 0. */
static ql_status allocate_sums(ql_memory *m, ql_error *err) {
    m->chunk.sum = ql_alloc(ql_memory_sums(m) * sizeof *m->chunk.sum);
    m->query_sum = ql_alloc(ql_memory_sums(m) * sizeof *m->query_sum);
    if (!m->chunk.sum || !m->query_sum)
        return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for the sums of a session's queries");
    memset(m->query_sum, 0, ql_memory_sums(m) * sizeof *m->query_sum);
    return QL_OK;
}

static ql_status allocate(ql_memory *m, ql_error *err) {
    size_t half = (size_t)m->heads.head_dim / 2;
    m->far_cos = ql_alloc(half * sizeof(float));
    m->far_sin = ql_alloc(half * sizeof(float));
    m->chunk.query = ql_alloc(ql_memory_width(m) * sizeof(float));
    m->chunk.chosen = ql_alloc(ql_memory_choices(m) * sizeof *m->chunk.chosen);
    m->kept = ql_alloc(ql_memory_choices(m) * sizeof *m->kept);
    if (!m->far_cos || !m->far_sin || !m->chunk.query || !m->chunk.chosen || !m->kept)
        return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a session's state");
    memset(m->chunk.chosen, 0, ql_memory_choices(m) * sizeof *m->chunk.chosen); /* saved whole */
    memset(m->kept, 0, ql_memory_choices(m) * sizeof *m->kept);
    return allocate_sums(m, err);
}

ql_status ql_memory_init(ql_memory *m, ql_heads heads, const ql_memory_config *config,
                         const ql_kernels *kernels, int n_threads, const double *inv_freq,
                         int sliding_window, ql_error *err) {
    *m = (ql_memory){.heads = heads,
                     .config = *config,
                     .kernels = kernels,
                     .n_threads = n_threads,
                     .inv_freq = inv_freq,
                     .n_kept = -1};
    m->reach = !ql_memory_full(m)   ? config->n_local
               : sliding_window > 0 ? sliding_window
                                    : NO_REACH;
    ql_kv_init(&m->kv, heads, config->kv_dtype, ql_memory_full(m) ? 0 : config->n_init,
               ql_memory_full(m) ? FULL_PAGE : config->block_size);
    /* There is little of these, and a window's keys matter most. */
    ql_dtype precise = config->kv_dtype == QL_F32 ? QL_F32 : QL_BF16;
    ql_index_init(&m->index, heads, precise);
    ql_status status = allocate(m, err);
    if (!status && !ql_memory_full(m)) {
        int most = config->n_local + config->block_size + config->exc_block_size;
        status = ql_window_init(&m->window, heads, precise, most, err);
        far_angle(m);
    }
    if (status) ql_memory_clear(m);
    return status;
}

ql_status ql_memory_keep_keys(ql_memory *m, const ql_head *heads, int n, ql_error *err) {
    ql_status status = ql_keys_init(&m->keys, m->heads, m->config.kv_dtype, heads, n, err);
    if (status) return status;
    free(m->chunk.sum);
    free(m->query_sum);
    return allocate_sums(m, err);
}

static ql_status copy_floats(float **to, const float *from, size_t n, ql_error *err) {
    *to = NULL;
    if (!from) return QL_OK;
    *to = ql_alloc(n * sizeof **to);
    if (!*to) return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a copy of the question");
    memcpy(*to, from, n * sizeof **to);
    return QL_OK;
}

ql_status ql_memory_fork(ql_memory *to, const ql_memory *from, ql_error *err) {
    *to = *from; /* and then everything that is owned anew, before anything can fail */
    to->window.keys = NULL;
    to->window.scores = NULL;
    to->question.queries = to->question.vectors = NULL;
    to->kv.first = to->kv.pages = to->index.slabs = (ql_store){0};
    to->keys.slabs = (ql_store){0};
    if (to->volume) ql_volume_retain(to->volume);
    to->keys.place = NULL;
    to->trace = (ql_trace){0};
    to->far_cos = to->far_sin = NULL;
    to->query_sum = NULL;
    to->kept = to->pinned = NULL;
    to->n_pinned = 0;
    to->chunk = (ql_chunk){0};
    size_t question = (size_t)from->heads.n_layers * ql_memory_width(from);
    ql_status status = allocate(to, err);
    if (!status) status = ql_kv_fork(&to->kv, &from->kv, from->n_tokens, err);
    if (!status) status = ql_index_fork(&to->index, &from->index, from->n_blocks, err);
    if (!status) status = ql_keys_fork(&to->keys, &from->keys, from->n_tokens, err);
    if (!status && !ql_memory_full(from))
        status = ql_window_fork(&to->window, &from->window, from->n_tokens, err);
    if (!status) status = copy_floats(&to->question.vectors, from->question.vectors, question, err);
    if (!status && !from->question.known) {
        size_t span = (size_t)(from->question.end - from->question.begin);
        status = copy_floats(&to->question.queries, from->question.queries, question * span, err);
    }
    if (!status && from->pinned) status = ql_memory_pin(to, from->pinned, from->n_pinned, err);
    if (status) {
        ql_memory_clear(to);
        return status;
    }
    if (!ql_memory_full(to)) far_angle(to);
    memcpy(to->query_sum, from->query_sum, ql_memory_sums(to) * sizeof *to->query_sum);
    if (to->n_kept > 0) memcpy(to->kept, from->kept, ql_memory_choices(to) * sizeof *to->kept);
    return QL_OK;
}

int64_t ql_memory_local_first(const ql_memory *m) {
    return m->n_tokens >= m->reach ? m->n_tokens - m->reach + 1 : 0;
}

int64_t ql_memory_window_first(const ql_memory *m) {
    int64_t local = ql_memory_local_first(m), waiting = ql_memory_first_waiting(m);
    return ql_memory_sinks_only(m) || local < waiting ? local : waiting;
}

void ql_memory_reset(ql_memory *m) {
    ql_kv_clear(&m->kv);
    ql_store_clear(&m->index.slabs);
    ql_keys_forget(&m->keys);
    ql_volume_free(m->volume);
    m->volume = NULL;
    ql_trace_clear(&m->trace);
    m->n_tokens = m->n_first = m->n_blocks = 0;
    m->window.first = 0;
    memset(m->query_sum, 0, ql_memory_sums(m) * sizeof *m->query_sum);
    ql_memory_pin(m, NULL, -1, NULL);
}

void ql_memory_clear(ql_memory *m) {
    size_t freed = ql_kv_clear(&m->kv) + ql_store_clear(&m->index.slabs) + ql_keys_clear(&m->keys);
    ql_volume_free(m->volume);
    ql_window_clear(&m->window);
    ql_trace_clear(&m->trace);
    float *floats[] = {m->question.queries, m->question.vectors, m->far_cos,    m->far_sin,
                       m->chunk.cos,        m->chunk.sin,        m->chunk.mass, m->chunk.query,
                       m->chunk.scores,     m->chunk.sum};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) free(floats[i]);
    free(m->query_sum);
    free(m->pinned);
    free(m->chunk.chosen);
    free(m->kept);
    free(m->chunk.spans);
    *m = (ql_memory){0};
    ql_give_back(freed);
}

size_t ql_memory_bytes(const ql_memory *m) {
    size_t vectors = (size_t)m->heads.n_layers * ql_memory_width(m),
           asked = (size_t)(m->question.end - m->question.begin);
    size_t floats = 2 * m->chunk.tables_capacity + m->chunk.mass_capacity +
                    m->chunk.scores_capacity + ql_memory_sums(m) +
                    (m->question.queries ? vectors * asked : 0) +
                    (m->question.vectors ? vectors : 0);
    size_t choices = 2 * ql_memory_choices(m) + (size_t)m->n_pinned;
    size_t mapped = m->volume ? ql_volume_resident(m->volume) : 0;
    return mapped + ql_kv_bytes(&m->kv) + ql_index_bytes(&m->index) + ql_keys_bytes(&m->keys) +
           ql_window_bytes(&m->window) + ql_trace_bytes(&m->trace) + floats * sizeof(float) +
           ql_memory_sums(m) * sizeof *m->query_sum + choices * sizeof *m->kept +
           m->chunk.spans_capacity * sizeof(ql_span);
}

ql_status ql_memory_ask(ql_memory *m, int64_t begin, int64_t end, ql_error *err) {
    size_t vectors = (size_t)m->heads.n_layers * ql_memory_width(m);
    size_t spoken = vectors * (size_t)(end - begin) * sizeof(float);
    float *queries = ql_alloc(spoken);
    float *vector = ql_alloc(vectors * sizeof *vector);
    if (!queries || !vector) {
        free(queries);
        free(vector);
        return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a question of %lld tokens",
                       (long long)(end - begin));
    }
    memset(queries, 0, spoken); /* they may be saved before they are read */
    memset(vector, 0, vectors * sizeof *vector);
    ql_memory_unask(m);
    m->question = (ql_question){.begin = begin, .end = end, .queries = queries, .vectors = vector};
    return QL_OK;
}

void ql_memory_heard(ql_memory *m) {
    m->question.known = true;
    free(m->question.queries);
    m->question.queries = NULL;
}

void ql_question_free(ql_question *question) {
    free(question->queries);
    free(question->vectors);
    *question = (ql_question){0};
}

void ql_memory_unask(ql_memory *m) {
    ql_question_free(&m->question);
    m->n_kept = -1;
}

ql_status ql_memory_pin(ql_memory *m, const int32_t *blocks, int n, ql_error *err) {
    int32_t *pinned = NULL;
    if (n >= 0 && !(pinned = ql_alloc(((size_t)n + 1) * sizeof *pinned)))
        return ql_fail(err, QL_OUT_OF_MEMORY, "no memory to pin %d blocks", n);
    if (n > 0) memcpy(pinned, blocks, (size_t)n * sizeof *pinned);
    free(m->pinned);
    m->pinned = pinned;
    m->n_pinned = n > 0 ? n : 0;
    m->n_kept = -1;
    return QL_OK;
}

void ql_memory_block_vectors(const ql_memory *m, int layer, float *out) {
    for (int64_t b = 0; b < m->n_blocks; b++)
        ql_get_row(m->kernels, out + (size_t)b * ql_memory_width(m),
                   ql_index_vector(&m->index, layer, b), m->index.dtype, ql_memory_width(m));
}

void ql_memory_question_vector(const ql_memory *m, int layer, float *out) {
    memcpy(out, m->question.vectors + layer * ql_memory_width(m), ql_memory_width(m) * sizeof *out);
}

void ql_memory_mean_query(const ql_memory *m, int layer, float *out) {
    double n = m->n_tokens ? (double)m->n_tokens : 1;
    for (size_t i = 0; i < ql_memory_width(m); i++)
        out[i] = (float)(m->query_sum[layer * ql_memory_width(m) + i] / n);
}
