/* options.h - the settings of a session's memory. */
#ifndef QL_PYTHON_OPTIONS_H
#define QL_PYTHON_OPTIONS_H

#include "module.h"

/* The keyword arguments of Session() in the order of its signature (borrowed); NULL: not given. */
typedef struct session_options {
    PyObject *mode, *n_init, *n_local, *block_size, *topk, *repr_topk, *exc_block_size,
        *lookup_interval;
    PyObject *question_weight, *keep_query_tokens, *mask, *kv_dtype, *query_span, *trace,
        *skim_heads;
} session_options;

bool qlpy_memory(module_state *state, const session_options *given, ql_memory_config *out);

/* True, False or "choices". */
bool qlpy_tracing(module_state *state, PyObject *value, ql_tracing *out);

const char *qlpy_mode_name(ql_mode mode);
const char *qlpy_mask_name(ql_mask mask);

/* What repr() of a session says that is not computing. */
PyObject *qlpy_memory_repr(const ql_memory_config *memory, long long length, long long n_blocks,
                           size_t n_kib);

#endif
