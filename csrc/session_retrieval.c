/* session_retrieval.c - the functions of a session that find passages and use them again. */
#include "error.h"
#include "retrieval.h"
#include "timeline.h"

ql_status ql_session_mean_query(ql_session *s, int layer, float *out, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = ql_check_layer(s, layer, err);
    if (!status) status = ql_check_ranks(s, err);
    if (!status) ql_memory_mean_query(&s->memory, layer, out);
    ql_leave(s);
    return status;
}

ql_status ql_session_rank(ql_session *s, const ql_head *heads, int n_heads, const float *queries,
                          int n_queries, int64_t begin, int64_t end, int64_t piece, float *scores,
                          ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = ql_check_heads(s, heads, n_heads, true, err);
    if (!status) status = ql_check_range("the number of heads", n_heads, 1, INT32_MAX / 2, err);
    if (!status) status = ql_check_range("the number of queries", n_queries, 1, INT32_MAX / 2, err);
    if (!status) status = ql_check_range("end", end, 1, s->memory.n_tokens, err);
    if (!status) status = ql_check_range("begin", begin, 0, end - 1, err);
    if (!status) status = ql_check_range("piece", piece, 1, INT32_MAX, err);
    if (!status) /* each is an item of work at most */
        status = ql_check_range("pieces times heads", (end - begin + piece - 1) / piece * n_heads,
                                1, INT32_MAX / 2, err);
    if (!status) ql_rank(&s->memory, scores, heads, n_heads, queries, n_queries, begin, end, piece);
    return ql_finish(s, status, err);
}

static ql_status check_ascending(const char *what, int64_t value, int64_t least, int64_t most,
                                 ql_error *err) {
    if (value >= least && value < most) return QL_OK;
    return ql_fail(
        err, QL_INVALID_VALUE,
        "%s must ascend, each below %lld, but %lld came where at least %lld was expected", what,
        (long long)most, (long long)value, (long long)least);
}

ql_status ql_session_pin(ql_session *s, const int32_t *blocks, int n, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = ql_check_blocks(s, err);
    for (int i = 0; i < n && !status; i++)
        status = check_ascending("pinned blocks", blocks[i], i ? blocks[i - 1] + (int64_t)1 : 0,
                                 s->memory.n_blocks, err);
    if (!status && n > 0 && (int64_t)n * s->memory.config.block_size > QL_MOST_RETRIEVED)
        status = ql_fail(err, QL_INVALID_VALUE, "pinned blocks must hold at most %lld tokens",
                         (long long)QL_MOST_RETRIEVED);
    if (!status) status = ql_memory_pin(&s->memory, blocks, n, err);
    ql_leave(s);
    return status;
}

ql_session *ql_session_excerpt(ql_session *s, const int64_t *ranges, int n, ql_error *err) {
    if (ql_enter(s, err)) return NULL;
    ql_status status = ql_check_blocks(s, err);
    int64_t tokens = 0;
    for (int i = 0; i < n && !status; i++) {
        status = check_ascending("ranges of an excerpt", ranges[2 * i], i ? ranges[2 * i - 1] : 0,
                                 s->memory.n_tokens, err);
        if (!status)
            status = check_ascending("ranges of an excerpt", ranges[2 * i + 1], ranges[2 * i] + 1,
                                     s->memory.n_tokens + 1, err);
        if (!status) tokens += ranges[2 * i + 1] - ranges[2 * i];
    }
    if (!status) status = ql_check_range("the tokens of an excerpt", tokens, 1, QL_MAX_FULL, err);
    ql_memory_config full = s->memory.config;
    full.mode = QL_FULL;
    ql_session *excerpt = status ? NULL : ql_session_new(s->model, &full, err);
    if (excerpt && ql_take_excerpt(&excerpt->memory, &s->memory, ranges, n, err)) {
        ql_session_free(excerpt);
        excerpt = NULL;
    }
    if (excerpt) ql_leave(excerpt);
    if (ql_finish(s, status, err)) {
        ql_session_free(excerpt);
        excerpt = NULL;
    }
    return excerpt;
}
