/* session.c - one timeline: checks what comes from outside, cuts it into chunks, lets one thread in
 * at a time. */
#include <math.h>
#include <stdlib.h>

#include "error.h"
#include "timeline.h"

enum { MOST_SETTING = 1 << 20 };

/* ---- settings ---- */

static ql_status check_memory(const ql_memory_config *c, ql_error *err) {
    ql_status status = ql_check_range("n_init", c->n_init, 0, MOST_SETTING, err);
    if (!status) status = ql_check_range("n_local", c->n_local, 1, MOST_SETTING, err);
    if (!status) status = ql_check_range("block_size", c->block_size, 1, MOST_SETTING, err);
    if (!status) status = ql_check_range("topk", c->topk, 0, MOST_SETTING, err);
    if (!status) status = ql_check_range("repr_topk", c->repr_topk, 1, QL_MAX_REPR, err);
    if (!status) status = ql_check_range("exc_block_size", c->exc_block_size, 1, MOST_SETTING, err);
    if (!status)
        status = ql_check_range("lookup_interval", c->lookup_interval, 0, MOST_SETTING, err);
    if (status) return status;
    if ((unsigned)c->mode > QL_QLLM)
        return ql_fail(err, QL_INVALID_VALUE, "there is no memory mode number %d", (int)c->mode);
    if ((unsigned)c->mask > QL_MASK_AUTHORS)
        return ql_fail(err, QL_INVALID_VALUE, "there is no mask number %d", (int)c->mask);
    if (c->kv_dtype != QL_F32 && c->kv_dtype != QL_BF16 && c->kv_dtype != QL_INT8)
        return ql_fail(err, QL_INVALID_TYPE,
                       "keys and values are kept as float32, bfloat16 or int8, not as %s",
                       ql_dtype_name(c->kv_dtype));
    if (!isfinite(c->question_weight) || c->question_weight < 0)
        return ql_fail(err, QL_INVALID_VALUE,
                       "question_weight must be a number of at least 0, but is %g",
                       c->question_weight);
    if (c->mode == QL_FULL) return QL_OK;
    if (c->exc_block_size > c->n_local)
        return ql_fail(err, QL_INVALID_VALUE, "exc_block_size (%d) must be at most n_local (%d)",
                       c->exc_block_size, c->n_local);
    if (c->repr_topk > c->block_size)
        return ql_fail(err, QL_INVALID_VALUE, "repr_topk (%d) must be at most block_size (%d)",
                       c->repr_topk, c->block_size);
    if ((int64_t)c->topk * c->block_size > QL_MOST_RETRIEVED)
        return ql_fail(err, QL_INVALID_VALUE, "topk * block_size must be at most %lld tokens",
                       (long long)QL_MOST_RETRIEVED);
    return QL_OK;
}

/* ---- life ---- */

static ql_session *session_of(ql_model *model, ql_error *err) {
    ql_session *s = calloc(1, sizeof *s);
    if (!s) {
        ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a session");
        return NULL;
    }
    s->model = model;
    ql_model_retain(model);
    atomic_init(&s->busy, false);
    return s;
}

/* A session over the model's first layers; with n_kept > 0 it skims and keeps these heads' keys. */
static ql_session *new_session(ql_model *model, const ql_memory_config *config, int n_layers,
                               const ql_head *kept, int n_kept, ql_error *err) {
    ql_heads heads = ql_model_heads(model);
    ql_session *s = session_of(model, err);
    if (!s) return NULL;
    heads.n_layers = n_layers;
    ql_status status = ql_memory_init(&s->memory, heads, config, model->kernels, model->n_threads,
                                      model->inv_freq, model->config.sliding_window, err);
    if (!status && n_kept > 0) status = ql_memory_keep_keys(&s->memory, kept, n_kept, err);
    if (status) {
        ql_session_free(s);
        return NULL;
    }
    ql_leave(s);
    return s;
}

static ql_status check_new(const ql_model *model, const ql_memory_config *config, ql_error *err) {
    if (model->sealed) return check_memory(config, err);
    return ql_fail(err, QL_INVALID_VALUE,
                   "the model has no weights yet: set all tensors and seal it first");
}

ql_session *ql_session_new(ql_model *model, const ql_memory_config *config, ql_error *err) {
    if (check_new(model, config, err)) return NULL;
    return new_session(model, config, model->config.num_hidden_layers, NULL, 0, err);
}

ql_session *ql_session_skim(ql_model *model, const ql_memory_config *config, const ql_head *heads,
                            int n_heads, ql_error *err) {
    if (check_new(model, config, err)) return NULL;
    ql_status status = ql_check_range("the number of heads", n_heads, 1, INT32_MAX / 2, err);
    if (!status && config->mode != QL_STREAM && config->mode != QL_INFINITE)
        status = ql_fail(err, QL_INVALID_VALUE,
                         "skimming forgets what leaves the window: its mode is stream or infinite");
    int last = 0;
    for (int i = 0; i < n_heads && !status; i++) {
        status = ql_check_head(model, heads[i], err);
        if (heads[i].layer > last) last = heads[i].layer;
    }
    return status ? NULL : new_session(model, config, last + 1, heads, n_heads, err);
}

ql_session *ql_session_fork(ql_session *s, ql_tracing trace, ql_error *err) {
    if (ql_enter(s, err)) return NULL;
    ql_session *fork = session_of(s->model, err);
    if (fork) {
        fork->front_begin = s->front_begin;
        fork->front_end = s->front_end;
        if (ql_memory_fork(&fork->memory, &s->memory, err)) {
            ql_session_free(fork);
            fork = NULL;
        } else {
            fork->memory.config.trace = trace;
            ql_leave(fork);
        }
    }
    ql_leave(s);
    return fork;
}

void ql_session_free(ql_session *s) {
    if (!s) return;
    ql_memory_clear(&s->memory);
    ql_model_free(s->model);
    free(s);
}

static ql_status check_span(const ql_session *s, int64_t begin, int64_t end, ql_error *err) {
    int n_local = s->memory.config.n_local;
    if (s->memory.config.mode != QL_QLLM)
        return ql_fail(
            err, QL_INVALID_VALUE,
            "a question span belongs to mode qllm; this session's mode has no use for one");
    if (begin < 0 || begin >= end)
        return ql_fail(err, QL_INVALID_VALUE,
                       "the question span must be tokens [start, end) with 0 <= start < end, but "
                       "is [%lld, %lld)",
                       (long long)begin, (long long)end);
    if (end - begin > n_local)
        return ql_fail(err, QL_INVALID_VALUE,
                       "the question has %lld tokens, more than the window of n_local = %d: "
                       "shorten it or enlarge the window",
                       (long long)(end - begin), n_local);
    return QL_OK;
}

ql_status ql_session_set_question(ql_session *s, int64_t begin, int64_t end, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = check_span(s, begin, end, err);
    if (!status && s->memory.n_tokens > 0)
        status = ql_fail(err, QL_INVALID_VALUE,
                         "the session has read %lld tokens: give a later question's span to feed",
                         (long long)s->memory.n_tokens);
    if (!status) status = ql_memory_ask(&s->memory, begin, end, err);
    if (!status) {
        s->front_begin = begin;
        s->front_end = end;
    }
    ql_leave(s);
    return status;
}

ql_status ql_session_reset(ql_session *s, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    if (s->front_end > s->front_begin)
        status = ql_memory_ask(&s->memory, s->front_begin, s->front_end, err);
    else
        ql_memory_unask(&s->memory);
    if (!status) ql_memory_reset(&s->memory);
    ql_leave(s);
    return status;
}

/* ---- feed ---- */

static ql_status check_ids(const ql_session *s, const int32_t *ids, int64_t n, ql_error *err) {
    int vocab = s->model->config.vocab_size;
    if (n < 1)
        return ql_fail(err, QL_INVALID_VALUE,
                       "there must be at least one token id, but the sequence is empty");
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return ql_fail(
                err, QL_INVALID_VALUE,
                "token id %d at position %lld is outside the vocabulary of %d: ids go from 0 to %d",
                ids[i], (long long)i, vocab, vocab - 1);
    if (s->memory.config.mode == QL_FULL && s->memory.n_tokens + n > QL_MAX_FULL)
        return ql_fail(err, QL_INVALID_VALUE,
                       "full attention is limited to %d tokens, this would make %lld: use memory "
                       "mode qllm or infllm",
                       QL_MAX_FULL, (long long)(s->memory.n_tokens + n));
    return QL_OK;
}

/* A question must have been read whole when the first tokens leave the window, or the lookups would
 * go without it. */
static ql_status check_question(const ql_session *s, int64_t n, const ql_feed *feed,
                                ql_error *err) {
    const ql_memory *m = &s->memory;
    if (feed->question_begin || feed->question_end) {
        ql_status status = check_span(s, feed->question_begin, feed->question_end, err);
        if (!status && feed->question_end > n)
            status = ql_fail(
                err, QL_INVALID_VALUE,
                "the question span [%lld, %lld) goes beyond the %lld tokens of this call: it "
                "counts from the first of them",
                (long long)feed->question_begin, (long long)feed->question_end, (long long)n);
        return status;
    }
    int64_t end = m->n_tokens + n;
    if (m->question.begin < m->question.end && m->question.end > end && end > m->config.n_local)
        return ql_fail(err, QL_INVALID_VALUE,
                       "after this call %lld tokens are read, more than n_local = %d, but the "
                       "question ends at token %lld: feed up to "
                       "the question's end in one call",
                       (long long)end, m->config.n_local, (long long)m->question.end);
    return QL_OK;
}

/* Reads n valid ids; logits [keep, V] of the last keep tokens. */
static ql_status feed_chunks(ql_session *s, const int32_t *ids, int64_t n, int64_t keep,
                             const ql_feed *feed, float *logits, ql_error *err) {
    ql_workspace *workspace = ql_workspace_take(s->model, err);
    if (!workspace) return QL_OUT_OF_MEMORY;
    ql_status status = QL_OK;
    for (int64_t at = 0; at < n && !status; at += s->memory.config.exc_block_size) {
        int64_t rest = n - at;
        int chunk =
            rest < s->memory.config.exc_block_size ? (int)rest : s->memory.config.exc_block_size;
        int64_t wanted = at + chunk - (n - keep); /* logits due up to the chunk's end */
        int n_logits = wanted <= 0 ? 0 : wanted < chunk ? (int)wanted : chunk;
        s->memory.chunk.feed = feed;
        s->memory.chunk.heard = at;
        s->memory.chunk.call_tokens = n;
        float *to = n_logits ? logits + (wanted - n_logits) * s->model->config.vocab_size : NULL;
        status =
            ql_forward(s->model, &s->memory, workspace, ids + at, chunk, n_logits, to, feed, err);
    }
    s->memory.chunk.feed = NULL;
    ql_workspace_give(s->model, workspace);
    return status;
}

ql_status ql_session_feed(ql_session *s, const int32_t *ids, int64_t n, const ql_feed *feed,
                          float *logits, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = check_ids(s, ids, n, err);
    if (!status) status = check_question(s, n, feed, err);
    if (!status && logits && ql_memory_skims(&s->memory))
        status = ql_fail(err, QL_INVALID_VALUE,
                         "this session skims: it computes %d of the model's %d layers and has no "
                         "logits",
                         s->memory.heads.n_layers, s->model->config.num_hidden_layers);
    if (!status && feed->n_heads)
        status = ql_check_heads(s, feed->heads, feed->n_heads, false, err);
    ql_memory *m = &s->memory;
    ql_question before = m->question;
    int n_kept = m->n_kept;
    bool asks = !status && feed->question_end > 0;
    if (asks) {
        m->question = (ql_question){0};
        status = ql_memory_ask(m, m->n_tokens + feed->question_begin,
                               m->n_tokens + feed->question_end, err);
    }
    int64_t length = m->n_tokens;
    if (!status)
        status = feed_chunks(s, ids, n, !logits ? 0 : feed->all_logits ? n : 1, feed, logits, err);
    if (asks && m->n_tokens == length) { /* nothing was read: the earlier question stays */
        ql_question unread = m->question;
        m->question = before;
        m->n_kept = n_kept;
        before = unread;
    }
    if (asks) ql_question_free(&before);
    return ql_finish(s, status, err);
}

ql_status ql_model_forward(ql_model *model, const int32_t *ids, int64_t n, int64_t keep,
                           const ql_feed *feed, float *logits, ql_error *err) {
    const ql_memory_config full = {.mode = QL_FULL,
                                   .n_local = 1,
                                   .block_size = 1,
                                   .repr_topk = 1,
                                   .exc_block_size = 512,
                                   .kv_dtype = QL_F32};
    ql_session *s = ql_session_new(model, &full, err);
    if (!s) return err ? err->code : QL_FAILED;
    ql_status status = check_ids(s, ids, n, err);
    if (!status) status = ql_check_range("the number of logits to keep", keep, 0, n, err);
    if (!status) status = feed_chunks(s, ids, n, keep, feed, logits, err);
    ql_session_free(s);
    return status;
}

/* ---- what one may know ---- */

int64_t ql_session_length(const ql_session *s) { return s->memory.n_tokens; }
bool ql_session_skims(const ql_session *s) { return ql_memory_skims(&s->memory); }
int ql_session_layers(const ql_session *s) { return s->memory.heads.n_layers; }
int64_t ql_session_blocks(const ql_session *s) { return s->memory.n_blocks; }
size_t ql_session_bytes(const ql_session *s) {
    return atomic_load_explicit(&s->bytes, memory_order_relaxed);
}
int64_t ql_session_trace_count(const ql_session *s) { return s->memory.trace.n; }
const ql_trace_record *ql_session_trace(const ql_session *s, int64_t index) {
    return index < 0 || index >= s->memory.trace.n ? NULL : &s->memory.trace.records[index];
}

ql_status ql_session_block_vectors(ql_session *s, int layer, float *out, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = ql_check_layer(s, layer, err);
    if (!status) ql_memory_block_vectors(&s->memory, layer, out);
    return ql_finish(s, status, err);
}

ql_status ql_session_question_vector(ql_session *s, int layer, float *out, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = ql_check_layer(s, layer, err);
    if (!status && !s->memory.question.known)
        status = ql_fail(err, QL_INVALID_VALUE,
                         "there is no question vector yet: it is set when a question span has been "
                         "read and more than n_local = %d "
                         "tokens wait",
                         s->memory.config.n_local);
    if (!status) ql_memory_question_vector(&s->memory, layer, out);
    ql_leave(s);
    return status;
}
