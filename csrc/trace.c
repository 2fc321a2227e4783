#include "trace.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

static size_t bytes_of(const ql_trace_record *record) {
    return (size_t)record->n_chosen * sizeof(int32_t) + (size_t)record->n_blocks * sizeof(float);
}

static void forget(ql_trace *trace, int64_t from) {
    for (int64_t i = from; i < trace->n_reserved; i++) {
        trace->bytes -= bytes_of(&trace->records[i]);
        free((void *)trace->records[i].block_ids);
        free((void *)trace->records[i].scores);
    }
    trace->n_reserved = from;
}

ql_status ql_trace_begin(ql_trace *trace, int n_layers, int64_t first_token, int n_tokens,
                         int64_t n_blocks, int n_chosen, ql_error *err) {
    forget(trace, trace->n); /* of a chunk that was not committed */
    int64_t need = trace->n + n_layers;
    if (need > trace->capacity) {
        int64_t capacity = need > 2 * trace->capacity ? need : 2 * trace->capacity;
        ql_trace_record *records = realloc(trace->records, (size_t)capacity * sizeof *records);
        if (!records)
            return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a trace of %lld records",
                           (long long)need);
        trace->records = records;
        trace->capacity = capacity;
    }
    for (int layer = 0; layer < n_layers; layer++) {
        int32_t *ids = calloc((size_t)n_chosen + 1, sizeof *ids);
        float *scores = calloc((size_t)n_blocks + 1, sizeof *scores);
        if (!ids || !scores) {
            free(ids);
            free(scores);
            return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a trace record of %lld blocks",
                           (long long)n_blocks);
        }
        trace->records[trace->n_reserved] =
            (ql_trace_record){first_token, n_tokens, layer, (int)n_blocks, n_chosen, ids, scores};
        trace->bytes += bytes_of(&trace->records[trace->n_reserved++]);
    }
    return QL_OK;
}

void ql_trace_put(ql_trace *trace, int layer, const int32_t *block_ids, const float *scores) {
    ql_trace_record *record = &trace->records[trace->n + layer];
    if (record->n_chosen)
        memcpy((void *)record->block_ids, block_ids, (size_t)record->n_chosen * sizeof *block_ids);
    if (record->n_blocks)
        memcpy((void *)record->scores, scores, (size_t)record->n_blocks * sizeof *scores);
}

void ql_trace_commit(ql_trace *trace) { trace->n = trace->n_reserved; }

void ql_trace_clear(ql_trace *trace) {
    forget(trace, 0);
    free(trace->records);
    *trace = (ql_trace){0};
}

size_t ql_trace_bytes(const ql_trace *trace) {
    return trace->bytes + (size_t)trace->capacity * sizeof *trace->records;
}
