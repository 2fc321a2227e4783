/* Attributes of Session, and what repr() says. */
#include "options.h"
#include "session.h"

static PyObject *get_trace(PyObject *object, void *unused) {
    (void)unused;
    session_object *self = (session_object *)object;
    if (!self->memory.trace) {
        return qlpy_fail(self->state, QL_INVALID_VALUE,
                         "this session keeps no trace; make it with trace=True");
    }
    if (!qlpy_enter(self)) {
        return NULL;
    }
    PyObject *list = qlpy_trace(self->state, self->session);
    qlpy_leave(self);
    return list;
}

/* For what can be asked at any time but while the session is being made. */
static bool made(session_object *self) {
    return self->session || qlpy_fail(self->state, QL_BUSY, "this session is still being made");
}

static PyObject *get_nbytes(PyObject *object, void *unused) {
    (void)unused;
    session_object *self = (session_object *)object;
    return made(self) ? PyLong_FromSize_t(ql_session_bytes(self->session)) : NULL;
}

static PyObject *get_n_blocks(PyObject *object, void *unused) {
    (void)unused;
    session_object *self = (session_object *)object;
    if (!qlpy_enter(self)) {
        return NULL;
    }
    int64_t n_blocks = ql_session_blocks(self->session);
    qlpy_leave(self);
    return PyLong_FromLongLong(n_blocks);
}

static PyObject *get_n_layers(PyObject *object, void *unused) {
    (void)unused;
    session_object *self = (session_object *)object;
    return made(self) ? PyLong_FromLong(ql_session_layers(self->session)) : NULL;
}

static PyObject *get_model(PyObject *object, void *unused) {
    (void)unused;
    PyObject *model = ((session_object *)object)->model;
    model = model ? model : Py_None;
    Py_INCREF(model);
    return model;
}

static PyObject *get_query_span(PyObject *object, void *unused) {
    (void)unused;
    session_object *self = (session_object *)object;
    if (self->question_end == 0) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(LL)", (long long)self->question_begin, (long long)self->question_end);
}

static PyObject *get_mode(PyObject *object, void *unused) {
    (void)unused;
    return PyUnicode_FromString(qlpy_mode_name(((session_object *)object)->memory.mode));
}

static PyObject *get_mask(PyObject *object, void *unused) {
    (void)unused;
    return PyUnicode_FromString(qlpy_mask_name(((session_object *)object)->memory.mask));
}

static PyObject *get_kv_dtype(PyObject *object, void *unused) {
    (void)unused;
    return PyUnicode_FromString(ql_dtype_name(((session_object *)object)->memory.kv_dtype));
}

PyGetSetDef qlpy_session_attributes[] = {
    {"model", get_model, NULL, PyDoc_STR("The Model that this session reads with."), NULL},
    {"mode", get_mode, NULL, PyDoc_STR("'full', 'stream', 'infinite', 'infllm' or 'qllm'."), NULL},
    {"mask", get_mask, NULL, PyDoc_STR("'exact' or 'authors'."), NULL},
    {"kv_dtype", get_kv_dtype, NULL,
     PyDoc_STR("How keys and values are held: 'float32', 'bfloat16' or 'int8'. Block vectors are\n"
               "float32 beside float32, else bfloat16."),
     NULL},
    {"query_span", get_query_span, NULL,
     PyDoc_STR("(start, end) of the question as given when the session was made, or None."), NULL},
    {"trace", get_trace, NULL,
     PyDoc_STR("A new list of one TraceRecord per execution chunk and layer, in the order of\n"
               "computation, since the session was made or reset. Raises InvalidValue when the\n"
               "session was made without a trace, and Busy."),
     NULL},
    {"n_layers", get_n_layers, NULL,
     PyDoc_STR("Layers that are computed: all of the model's, or as many as skim_heads needs."),
     NULL},
    {"n_blocks", get_n_blocks, NULL, PyDoc_STR("Blocks in the memory, B."), NULL},
    {"nbytes", get_nbytes, NULL,
     PyDoc_STR("Bytes of memory held, blocks shared with forks included."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define MEMBER(name, type, doc)                                                                    \
    {#name, type, offsetof(session_object, memory) + offsetof(ql_memory_config, name), READONLY,   \
     PyDoc_STR(doc)}

PyMemberDef qlpy_session_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(session_object, weak_references), READONLY, NULL},
    MEMBER(n_init, T_INT, "First tokens, always attended."),
    MEMBER(n_local, T_INT, "Tokens of the sliding window."),
    MEMBER(block_size, T_INT, "Tokens of a block, P."),
    MEMBER(topk, T_INT, "Blocks retrieved per layer and chunk."),
    MEMBER(repr_topk, T_INT, "Tokens that represent a block, or the question; R."),
    MEMBER(exc_block_size, T_INT, "Most tokens of an execution chunk."),
    MEMBER(lookup_interval, T_INT, "Of tokens that come one at a time, which look blocks up."),
    MEMBER(question_weight, T_FLOAT, "Weight of the question in the lookup, the paper's beta."),
    MEMBER(keep_query_tokens, T_BOOL, "Whether the question's tokens are always attended."),
    {NULL, 0, 0, 0, NULL},
};

PyObject *qlpy_session_repr(PyObject *object) {
    session_object *self = (session_object *)object;
    const ql_memory_config *memory = &self->memory;
    if (atomic_exchange(&self->in_use, true)) {
        return PyUnicode_FromFormat("<Session %s, computing>", qlpy_mode_name(memory->mode));
    }
    long long length = ql_session_length(self->session);
    long long n_blocks = ql_session_blocks(self->session);
    size_t n_kib = ql_session_bytes(self->session) >> 10;
    qlpy_leave(self);
    int n_layers = ql_session_layers(self->session);
    if (ql_session_skims(self->session)) {
        return PyUnicode_FromFormat("<Session %s, skimming with %d layers: %lld tokens, %zu KiB>",
                                    qlpy_mode_name(memory->mode), n_layers, length, n_kib);
    }
    return qlpy_memory_repr(memory, length, n_blocks, n_kib);
}
