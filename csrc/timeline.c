#include "timeline.h"

#include "error.h"

/* ---- one thread at a time ---- */

static ql_status check_volume(const ql_session *s, ql_error *err) {
    if (!s->memory.volume || !ql_volume_damaged(s->memory.volume)) return QL_OK;
    return ql_fail(err, QL_DAMAGED,
                   "the file that this session reads its keys and values from was shortened, or "
                   "could not be read, while it was in use: open it anew");
}

ql_status ql_enter(ql_session *s, ql_error *err) {
    if (atomic_exchange_explicit(&s->busy, true, memory_order_acquire))
        return ql_fail(err, QL_BUSY,
                       "this session is in use by another thread: give each thread a session of "
                       "its own (fork)");
    if (s->memory.volume) ql_volume_guard();
    ql_status status = check_volume(s, err);
    if (status) ql_leave(s);
    return status;
}

ql_status ql_finish(ql_session *s, ql_status status, ql_error *err) {
    if (!status) status = check_volume(s, err);
    ql_leave(s);
    return status;
}

void ql_leave(ql_session *s) {
    atomic_store_explicit(&s->bytes, sizeof *s + ql_memory_bytes(&s->memory), memory_order_relaxed);
    atomic_store_explicit(&s->busy, false, memory_order_release);
}

/* ---- checks ---- */

ql_status ql_check_range(const char *name, int64_t value, int64_t least, int64_t most,
                         ql_error *err) {
    if (value >= least && value <= most) return QL_OK;
    return ql_fail(err, QL_INVALID_VALUE, "%s must be between %lld and %lld, but is %lld", name,
                   (long long)least, (long long)most, (long long)value);
}

ql_status ql_check_head(const ql_model *model, ql_head head, ql_error *err) {
    const ql_config *c = &model->config;
    if (head.layer >= 0 && head.layer < c->num_hidden_layers && head.head >= 0 &&
        head.head < c->num_attention_heads)
        return QL_OK;
    return ql_fail(err, QL_INVALID_VALUE,
                   "there is no head %d in layer %d: the model has %d layers of %d heads",
                   head.head, head.layer, c->num_hidden_layers, c->num_attention_heads);
}

ql_status ql_check_blocks(const ql_session *s, ql_error *err) {
    if (ql_memory_has_blocks(&s->memory)) return QL_OK;
    return ql_fail(err, QL_INVALID_VALUE,
                   "retrieval needs a memory of mode infllm or qllm, which keeps every token");
}

ql_status ql_check_ranks(const ql_session *s, ql_error *err) {
    return ql_memory_skims(&s->memory) ? QL_OK : ql_check_blocks(s, err);
}

ql_status ql_check_layer(const ql_session *s, int layer, ql_error *err) {
    return ql_check_range("layer", layer, 0, s->memory.heads.n_layers - 1, err);
}

/* Heads whose queries can be heard, and (ranked) whose keys of all tokens are there. */
ql_status ql_check_heads(const ql_session *s, const ql_head *heads, int n, bool ranked,
                         ql_error *err) {
    const ql_memory *m = &s->memory;
    ql_status status = ql_check_ranks(s, err);
    for (int i = 0; i < n && !status; i++) {
        status = ql_check_head(s->model, heads[i], err);
        if (status || !ql_memory_skims(m)) continue;
        int g = heads[i].head / (m->heads.n_heads / m->heads.n_kv_heads);
        if (heads[i].layer >= m->heads.n_layers ||
            (ranked && !ql_keys_holds(&m->keys, heads[i].layer, g)))
            status =
                ql_fail(err, QL_INVALID_VALUE,
                        "this session skims and has %s of head %d in layer %d: it was made for "
                        "other heads",
                        ranked ? "no keys" : "no queries", heads[i].head, heads[i].layer);
    }
    return status;
}
