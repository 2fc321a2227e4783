/* session_state.c - a session's memory as slabs, counters and arrays, and back. */
#include "error.h"
#include "state.h"
#include "timeline.h"

static ql_status check_number(const char *what, int64_t value, int64_t n, ql_error *err) {
    return ql_check_range(what, value, 0, n - 1, err);
}

ql_status ql_session_slabs(ql_session *s, ql_part part, ql_slabs *slabs, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = check_number("the part", (int64_t)part, QL_N_PARTS, err);
    if (!status) ql_state_slabs(&s->memory, part, slabs);
    ql_leave(s);
    return status;
}

ql_status ql_session_copy_slab(ql_session *s, ql_part part, int64_t i, void *out, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = check_number("the part", (int64_t)part, QL_N_PARTS, err);
    if (!status) status = ql_state_copy_slab(&s->memory, part, i, out, err);
    return ql_finish(s, status, err);
}

ql_status ql_session_map_slab(ql_session *s, ql_part part, int64_t i, ql_volume *volume,
                              int64_t offset, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = check_number("the part", (int64_t)part, QL_N_PARTS, err);
    if (!status) status = ql_state_map_slab(&s->memory, part, i, volume, offset, err);
    ql_leave(s);
    return status;
}

ql_status ql_session_counters(ql_session *s, int64_t counters[QL_N_COUNTERS],
                              size_t array_bytes[QL_N_ARRAYS], ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    if (s->memory.pinned)
        status = ql_fail(err, QL_INVALID_VALUE,
                         "a session with pinned blocks cannot be saved: pin(None) first");
    if (!status) ql_state_counters(&s->memory, counters);
    for (ql_array a = 0; a < QL_N_ARRAYS && !status; a++)
        array_bytes[a] = ql_state_array_bytes(&s->memory, a);
    ql_leave(s);
    return status;
}

ql_status ql_session_copy_array(ql_session *s, ql_array array, void *out, ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    status = check_number("the array", (int64_t)array, QL_N_ARRAYS, err);
    if (!status) ql_state_copy_array(&s->memory, array, out);
    ql_leave(s);
    return status;
}

ql_status ql_session_restore(ql_session *s, const ql_saved *saved, ql_volume *volume,
                             ql_error *err) {
    ql_status status = ql_enter(s, err);
    if (status) return status;
    if (s->memory.n_tokens > 0)
        status = ql_fail(err, QL_INVALID_VALUE,
                         "only an empty session can be restored, and this one has read %lld tokens",
                         (long long)s->memory.n_tokens);
    if (!status) {
        ql_question before = s->memory.question;
        s->memory.question = (ql_question){0};
        ql_memory_reset(&s->memory); /* nothing that an interrupted chunk had reserved */
        status = ql_state_restore(&s->memory, saved, volume, err);
        if (status) { /* empty as before */
            ql_memory_unask(&s->memory);
            ql_memory_reset(&s->memory);
            s->memory.question = before;
        } else {
            ql_question_free(&before);
        }
    }
    ql_leave(s);
    return status;
}
