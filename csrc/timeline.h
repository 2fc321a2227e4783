/* timeline.h - a session's state, who may enter it, and the checks that its functions share. */
#ifndef QL_TIMELINE_H
#define QL_TIMELINE_H

#include "ql_internal.h"

enum { QL_MOST_RETRIEVED = 1 << 22 }; /* tokens that are looked up at a time */

struct ql_session {
    ql_model *model;
    ql_memory memory;
    int64_t front_begin, front_end; /* the question given for the session's start */
    atomic_size_t bytes;            /* as of the last change, so that anybody may ask at any time */
    atomic_bool busy;
};

/* One thread at a time: QL_BUSY instead of waiting. QL_DAMAGED when the file of its slabs is. */
ql_status ql_enter(ql_session *session, ql_error *err);
void ql_leave(ql_session *session);
/* Leaves; returns status, or QL_DAMAGED when what was read meanwhile cannot be trusted. */
ql_status ql_finish(ql_session *session, ql_status status, ql_error *err);

ql_status ql_check_range(const char *name, int64_t value, int64_t least, int64_t most,
                         ql_error *err);
/* The memory keeps blocks; it keeps every token's un-rotated keys, be it as blocks or as keys of a
 * few heads. */
ql_status ql_check_blocks(const ql_session *session, ql_error *err);
ql_status ql_check_ranks(const ql_session *session, ql_error *err);
ql_status ql_check_layer(const ql_session *session, int layer, ql_error *err);
ql_status ql_check_head(const ql_model *model, ql_head head, ql_error *err);
/* Heads [n] whose queries can be heard, and (ranked) whose keys of all tokens are there. */
ql_status ql_check_heads(const ql_session *session, const ql_head *heads, int n, bool ranked,
                         ql_error *err);

#endif
