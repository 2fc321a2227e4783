/* trace.h - what the lookups saw and chose, kept for whoever asks. A chunk's records become visible
 * when it is committed. */
#ifndef QL_TRACE_H
#define QL_TRACE_H

#include "ql.h"

typedef struct ql_trace {
    ql_trace_record *records; /* [n_reserved]; the first n are committed */
    int64_t n, n_reserved, capacity;
    size_t bytes; /* of the records' ids and scores */
} ql_trace;

/* Room for a chunk's records, one per layer, each with n_blocks scores and n_chosen ids. */
ql_status ql_trace_begin(ql_trace *trace, int n_layers, int64_t first_token, int n_tokens,
                         int64_t n_blocks, int n_chosen, ql_error *err);
void ql_trace_put(ql_trace *trace, int layer, const int32_t *block_ids, const float *scores);
void ql_trace_commit(ql_trace *trace);
void ql_trace_clear(ql_trace *trace);
size_t ql_trace_bytes(const ql_trace *trace);

#endif
