/* The settings of a session's memory, between Python's keywords and ql_memory_config. */
#include "options.h"

#include "convert.h"

static const char *const MODES[] = {"full", "stream", "infinite", "infllm", "qllm", NULL};
static const char *const MASKS[] = {"exact", "authors", NULL};
static const char *const KV_DTYPES[] = {"float32", "bfloat16", "int8", NULL};
static const ql_dtype KV_DTYPE_OF[] = {QL_F32, QL_BF16, QL_INT8};

const char *qlpy_mode_name(ql_mode mode) { return MODES[mode]; }

const char *qlpy_mask_name(ql_mask mask) { return MASKS[mask]; }

bool qlpy_tracing(module_state *state, PyObject *value, ql_tracing *out) {
    if (PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, "choices") == 0) {
        *out = QL_TRACE_CHOICES;
        return true;
    }
    if (PyBool_Check(value)) {
        *out = value == Py_True ? QL_TRACE_SCORES : QL_TRACE_NOTHING;
        return true;
    }
    if (PyUnicode_Check(value)) {
        return qlpy_fail(state, QL_INVALID_VALUE, "trace is %R; expected True, False or 'choices'",
                         value);
    }
    return qlpy_wrong_type(state, value, "trace", "True, False or 'choices'");
}

bool qlpy_memory(module_state *state, const session_options *given, ql_memory_config *out) {
    int mode, mask, kv_dtype;
    double weight;
    if (!qlpy_choice(state, given->mode, "mode", MODES, &mode) ||
        !qlpy_choice(state, given->mask, "mask", MASKS, &mask) ||
        !qlpy_int(state, given->n_init, "n_init", &out->n_init) ||
        !qlpy_int(state, given->n_local, "n_local", &out->n_local) ||
        !qlpy_int(state, given->block_size, "block_size", &out->block_size) ||
        !qlpy_int(state, given->topk, "topk", &out->topk) ||
        !qlpy_int(state, given->repr_topk, "repr_topk", &out->repr_topk) ||
        !qlpy_int(state, given->exc_block_size, "exc_block_size", &out->exc_block_size) ||
        !qlpy_int(state, given->lookup_interval, "lookup_interval", &out->lookup_interval) ||
        !qlpy_double(state, given->question_weight, "question_weight", &weight) ||
        !qlpy_bool(state, given->keep_query_tokens, "keep_query_tokens", &out->keep_query_tokens) ||
        !qlpy_choice(state, given->kv_dtype, "kv_dtype", KV_DTYPES, &kv_dtype) ||
        (given->trace && !qlpy_tracing(state, given->trace, &out->trace))) {
        return false;
    }
    out->mode = (ql_mode)mode;
    out->mask = (ql_mask)mask;
    out->kv_dtype = KV_DTYPE_OF[kv_dtype];
    out->question_weight = (float)weight;
    return true;
}

PyObject *qlpy_memory_repr(const ql_memory_config *memory, long long length, long long n_blocks,
                           size_t n_kib) {
    const char *mode = MODES[memory->mode];
    if (memory->mode == QL_FULL) {
        return PyUnicode_FromFormat("<Session full: %lld tokens, %s keys and values, %zu KiB>",
                                    length, ql_dtype_name(memory->kv_dtype), n_kib);
    }
    if (memory->mode == QL_STREAM || memory->mode == QL_INFINITE) {
        return PyUnicode_FromFormat("<Session %s: %lld tokens, n_init %d, n_local %d, %s keys and "
                                    "values, %zu KiB>",
                                    mode, length, memory->n_init, memory->n_local,
                                    ql_dtype_name(memory->kv_dtype), n_kib);
    }
    return PyUnicode_FromFormat("<Session %s: %lld tokens, %lld blocks of %d, n_init %d, n_local "
                                "%d, topk %d, %s keys and values, %zu KiB>",
                                mode, length, n_blocks, memory->block_size, memory->n_init,
                                memory->n_local, memory->topk, ql_dtype_name(memory->kv_dtype),
                                n_kib);
}
