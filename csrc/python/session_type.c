/* The type Session: one timeline of tokens over a model. */
#include "options.h"
#include "session.h"

/* ---- one call at a time ---- */

bool qlpy_enter(session_object *self) {
    if (!atomic_exchange(&self->in_use, true)) {
        return true;
    }
    return qlpy_fail(self->state, QL_BUSY,
                     "this session is in use by another call, in another thread or in the code "
                     "that a signal handler interrupted; a session serves one call at a time: "
                     "fork() it, or make one session per thread");
}

void qlpy_leave(session_object *self) { atomic_store(&self->in_use, false); }

const ql_config *qlpy_session_config(const session_object *self) {
    return ql_model_config(qlpy_weights_model(self->weights));
}

/* ---- life ---- */

static int session_traverse(PyObject *object, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((session_object *)object)->model);
    return 0;
}

static int session_clear(PyObject *object) {
    Py_CLEAR(((session_object *)object)->model); /* the weights stay until session is freed */
    return 0;
}

static void session_dealloc(PyObject *object) {
    session_object *self = (session_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->weak_references) {
        PyObject_ClearWeakRefs(object);
    }
    ql_session_free(self->session);
    qlpy_weights_release(self->weights);
    Py_CLEAR(self->model);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* A Session without its core session, in use until it has one: others may meet it through the
 * garbage collector's list. */
session_object *qlpy_alloc_session(module_state *state, PyObject *model, weights *owned) {
    PyObject *object = PyType_GenericAlloc(state->session_type, 0); /* zeroed */
    session_object *self = (session_object *)object;
    if (self) {
        self->state = state;
        self->weights = qlpy_weights_retain(owned);
        Py_INCREF(model);
        self->model = model;
        atomic_init(&self->in_use, true);
    }
    return self;
}

static bool create(session_object *self, const session_options *given) {
    ql_error err = {0};
    ql_model *model = qlpy_weights_model(self->weights);
    ql_head *heads = NULL; /* only these are skimmed for */
    int n_heads = 0;
    if (!qlpy_memory(self->state, given, &self->memory) ||
        (given->query_span &&
         !qlpy_span(self->state, given->query_span, &self->question_begin, &self->question_end)) ||
        (given->skim_heads && given->skim_heads != Py_None &&
         !(heads = qlpy_heads(self->state, given->skim_heads, &n_heads)))) {
        return false;
    }
    PyThreadState *thread = PyEval_SaveThread();
    self->session = heads ? ql_session_skim(model, &self->memory, heads, n_heads, &err)
                          : ql_session_new(model, &self->memory, &err);
    PyEval_RestoreThread(thread);
    PyMem_Free(heads);
    if (!self->session) {
        return qlpy_raise(self->state, err.code, &err);
    }
    if (self->question_end == 0) {
        return true;
    }
    ql_status status =
        ql_session_set_question(self->session, self->question_begin, self->question_end, &err);
    return status == QL_OK || qlpy_raise(self->state, status, &err);
}

static PyObject *session_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"model",
                            "mode",
                            "n_init",
                            "n_local",
                            "block_size",
                            "topk",
                            "repr_topk",
                            "exc_block_size",
                            "lookup_interval",
                            "question_weight",
                            "keep_query_tokens",
                            "mask",
                            "kv_dtype",
                            "query_span",
                            "trace",
                            "skim_heads",
                            NULL};
    PyObject *model = NULL;
    session_options given = {0};
    module_state *state = PyType_GetModuleState(type);
    if (!state ||
        !PyArg_ParseTupleAndKeywords(
            args, kwargs, "O|$OOOOOOOOOOOOOOO:Session", names, &model, &given.mode, &given.n_init,
            &given.n_local, &given.block_size, &given.topk, &given.repr_topk, &given.exc_block_size,
            &given.lookup_interval, &given.question_weight, &given.keep_query_tokens, &given.mask,
            &given.kv_dtype, &given.query_span, &given.trace, &given.skim_heads)) {
        return NULL;
    }
    PyObject *const *options = (PyObject *const *)&given;
    const int n_required = offsetof(session_options, query_span) / sizeof *options;
    for (int i = 0; i < n_required; i++) {
        if (!options[i]) {
            return qlpy_fail(state, QL_INVALID_TYPE, "Session() needs the keyword argument '%s'",
                             names[i + 1]);
        }
    }
    weights *owned = qlpy_model_weights(state, model);
    session_object *self = owned ? qlpy_alloc_session(state, model, owned) : NULL;
    if (self && create(self, &given)) {
        qlpy_leave(self);
    } else {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static const char fork_doc[] =
    "fork($self, *, trace=None)\n"
    "--\n\n"
    "Returns a new Session that stands where this one stands and goes on by itself: the\n"
    "blocks are shared, the rest is copied.\n\n"
    "trace: what to keep of what follows, as in Session; None: as this session does. The\n"
    "trace begins empty. Raises InvalidValue, InvalidType, Busy, MemoryError.";

static PyObject *session_fork(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"trace", NULL};
    session_object *self = (session_object *)object;
    PyObject *model = self->model ? self->model : Py_None, *trace_given = Py_None;
    ql_tracing trace = self->memory.trace;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O:fork", names, &trace_given) ||
        (trace_given != Py_None && !qlpy_tracing(self->state, trace_given, &trace)) ||
        !qlpy_enter(self)) {
        return NULL;
    }
    session_object *copy = qlpy_alloc_session(self->state, model, self->weights);
    if (copy) {
        ql_error err = {0};
        PyThreadState *thread = PyEval_SaveThread();
        copy->session = ql_session_fork(self->session, trace, &err);
        PyEval_RestoreThread(thread);
        copy->memory = self->memory;
        copy->memory.trace = trace;
        copy->question_begin = self->question_begin;
        copy->question_end = self->question_end;
        if (copy->session) {
            qlpy_leave(copy);
        } else {
            qlpy_raise(self->state, err.code, &err);
            Py_CLEAR(copy);
        }
    }
    qlpy_leave(self);
    return (PyObject *)copy;
}

static const char reset_doc[] =
    "reset($self)\n"
    "--\n\n"
    "Empties the session; the query_span that it was made with is kept. Raises Busy.";

static PyObject *session_reset(PyObject *object, PyObject *unused) {
    (void)unused;
    session_object *self = (session_object *)object;
    if (!qlpy_enter(self)) {
        return NULL;
    }
    ql_error err = {0};
    ql_status status;
    PyThreadState *thread = PyEval_SaveThread();
    status = ql_session_reset(self->session, &err);
    PyEval_RestoreThread(thread);
    qlpy_leave(self);
    return qlpy_none(self->state, status, &err);
}

/* ---- reading ---- */

static const char feed_doc[] =
    "feed($self, ids, all_logits=False, query_span=None)\n"
    "--\n\n"
    "Reads tokens, cut from the first of this call on into execution chunks.\n\n"
    "ids: token ids, [T] or [1, T] of any integer dtype, or a list of int; T >= 1.\n"
    "all_logits: logits of every token, not only of the last one.\n"
    "query_span: (start, end) of the question in positions of this call; replaces an\n"
    "    earlier one.\n\n"
    "Returns a new float32 array: [vocab], or [T, vocab] with all_logits.\n\n"
    "Raises InvalidValue (an id out of range, no token, a span outside of ids, a question\n"
    "longer than the window, a session that skims), InvalidType (ids that are no integers), Busy "
    "(the session is\n"
    "in use), MemoryError.\n\n"
    "Each execution chunk is read as a whole or not at all: after any\n"
    "exception, KeyboardInterrupt included, the session stands at the end of a chunk, len()\n"
    "says which, and can go on.";

static PyArrayObject *feed(session_object *self, PyArrayObject *ids, ql_feed *options) {
    int64_t n = PyArray_SIZE(ids);
    npy_intp shape[] = {n, qlpy_session_config(self)->vocab_size};
    PyArrayObject *logits = options->all_logits ? qlpy_floats(2, shape) : qlpy_floats(1, shape + 1);
    if (!logits) {
        return NULL;
    }
    ql_error err = {0};
    interruptible call;
    qlpy_release_gil(&call, options);
    ql_status status =
        ql_session_feed(self->session, PyArray_DATA(ids), n, options, PyArray_DATA(logits), &err);
    if (!qlpy_take_gil(&call, self->state, status, &err)) {
        Py_CLEAR(logits);
    }
    return logits;
}

static PyObject *session_feed(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "all_logits", "query_span", NULL};
    session_object *self = (session_object *)object;
    PyObject *ids_given, *all_given = NULL, *span_given = Py_None;
    ql_feed options = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OO:feed", names, &ids_given, &all_given,
                                     &span_given) ||
        (all_given && !qlpy_bool(self->state, all_given, "all_logits", &options.all_logits)) ||
        !qlpy_span(self->state, span_given, &options.question_begin, &options.question_end)) {
        return NULL;
    }
    PyArrayObject *ids = qlpy_ids(self->state, ids_given, qlpy_session_config(self)->vocab_size);
    PyArrayObject *logits = NULL;
    if (ids && qlpy_enter(self)) {
        logits = feed(self, ids, &options);
        qlpy_leave(self);
    }
    Py_XDECREF((PyObject *)ids);
    return (PyObject *)logits;
}

static const char read_doc[] =
    "read($self, ids, query_span=None)\n"
    "--\n\n"
    "Reads tokens as feed() does, without their logits; for sessions that skim, too.\n\n"
    "Raises what feed() raises.";

static PyObject *session_read(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "query_span", NULL};
    session_object *self = (session_object *)object;
    PyObject *ids_given, *span_given = Py_None;
    ql_feed options = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:read", names, &ids_given, &span_given) ||
        !qlpy_span(self->state, span_given, &options.question_begin, &options.question_end)) {
        return NULL;
    }
    PyArrayObject *ids = qlpy_ids(self->state, ids_given, qlpy_session_config(self)->vocab_size);
    bool done = false;
    if (ids && qlpy_enter(self)) {
        ql_error err = {0};
        interruptible call;
        qlpy_release_gil(&call, &options);
        ql_status status = ql_session_feed(self->session, PyArray_DATA(ids), PyArray_SIZE(ids),
                                           &options, NULL, &err);
        done = qlpy_take_gil(&call, self->state, status, &err);
        qlpy_leave(self);
    }
    Py_XDECREF((PyObject *)ids);
    if (!done) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static Py_ssize_t session_length(PyObject *object) {
    session_object *self = (session_object *)object;
    if (!qlpy_enter(self)) {
        return -1;
    }
    int64_t length = ql_session_length(self->session);
    qlpy_leave(self);
    return (Py_ssize_t)length;
}

/* ---- what the memory holds ---- */

typedef ql_status (*vector_getter)(ql_session *session, int layer, float *out, ql_error *err);

/* A new float32 array of a layer: [H*D], or rows of that many numbers, one for each block. */
static PyObject *layer_vectors(PyObject *object, PyObject *layer_given, bool blocks,
                               vector_getter get) {
    session_object *self = (session_object *)object;
    const ql_config *config = qlpy_session_config(self);
    int layer;
    if (!qlpy_int(self->state, layer_given, "layer", &layer) || !qlpy_enter(self)) {
        return NULL;
    }
    npy_intp width = (npy_intp)config->num_attention_heads * config->head_dim;
    npy_intp shape[] = {blocks ? (npy_intp)ql_session_blocks(self->session) : width, width};
    PyArrayObject *out = qlpy_floats(blocks ? 2 : 1, shape);
    ql_error err = {0};
    ql_status status = QL_OK;
    PyThreadState *thread = PyEval_SaveThread();
    if (out) {
        status = get(self->session, layer, PyArray_DATA(out), &err);
    }
    PyEval_RestoreThread(thread);
    qlpy_leave(self);
    return qlpy_array(self->state, out, status, &err);
}

static const char block_vectors_doc[] =
    "block_vectors($self, layer, /)\n"
    "--\n\n"
    "The representative vector of every block: mean, per query head, of the un-rotated keys\n"
    "of its repr_topk most attended tokens.\n\n"
    "layer: 0 ... L - 1. Returns a new float32 array [blocks, heads * head_dim], with no\n"
    "rows in a mode without blocks. Raises InvalidValue (no such layer), InvalidType, Busy.";

static PyObject *session_block_vectors(PyObject *object, PyObject *layer) {
    return layer_vectors(object, layer, true, ql_session_block_vectors);
}

static const char question_vector_doc[] =
    "question_vector($self, layer, /)\n"
    "--\n\n"
    "The question's vector: mean, per query head, of the queries of its repr_topk most\n"
    "attended tokens, rotated to position n_local - 1.\n\n"
    "layer: 0 ... L - 1. Returns a new float32 array [heads * head_dim]. Raises\n"
    "InvalidValue (no such layer, or no question vector yet), InvalidType, Busy.";

static PyObject *session_question_vector(PyObject *object, PyObject *layer) {
    return layer_vectors(object, layer, false, ql_session_question_vector);
}

static const char mean_query_doc[] =
    "mean_query($self, layer, /)\n"
    "--\n\n"
    "The mean of a layer's queries, not rotated, over all tokens read so far.\n\n"
    "layer: 0 ... n_layers - 1. Returns a new float32 array [heads * head_dim]. For the modes\n"
    "infllm and qllm, and for sessions that skim. Raises InvalidValue, InvalidType, Busy.";

static PyObject *session_mean_query(PyObject *object, PyObject *layer) {
    return layer_vectors(object, layer, false, ql_session_mean_query);
}

static const char session_doc[] =
    "Session(model, *, mode, n_init, n_local, block_size, topk, repr_topk, exc_block_size,\n"
    "        lookup_interval, question_weight, keep_query_tokens, mask, kv_dtype,\n"
    "        query_span=None, trace=False, skim_heads=None)\n"
    "--\n\n"
    "One timeline of tokens over a model: what was read, as the memory of the chosen mode\n"
    "keeps it.\n\n"
    "mode: 'full' (plain causal), 'stream' (StreamingLLM), 'infinite' (LM-Infinite),\n"
    "    'infllm' (InfLLM) or 'qllm' (Q-LLM, arXiv 2406.07528).\n"
    "n_init, n_local, block_size, exc_block_size, repr_topk: tokens; topk: blocks.\n"
    "lookup_interval: N: of tokens that come one at a time, every N-th looks blocks up.\n"
    "question_weight: the paper's beta. mask: 'exact' or 'authors'.\n"
    "keep_query_tokens: of qllm: attend to the question's tokens wherever they lie.\n"
    "kv_dtype: 'float32', 'bfloat16' or 'int8'.\n"
    "query_span: (start, end) of the question, counted from the session's first token.\n"
    "trace: True: keep a TraceRecord per execution chunk and layer; 'choices': without the\n"
    "    scores, which take 4 bytes a block and must be computed at every token.\n"
    "skim_heads: integers [n, 2], (layer, query head) each: compute only the layers up to the\n"
    "    highest of these heads, and keep nothing but their un-rotated keys of what leaves the\n"
    "    window; for the modes stream and infinite. Such a session has no logits: it is for\n"
    "    read(), listen() and rank(). None: all layers.\n\n"
    "Keeps the model alive. Used by one thread at a time; a second call gets Busy.\n"
    "Raises InvalidValue, InvalidType, MemoryError, Busy (a Model never initialised).";

static PyMethodDef methods[] = {
    {"feed", (PyCFunction)(void (*)(void))session_feed, METH_VARARGS | METH_KEYWORDS, feed_doc},
    {"read", (PyCFunction)(void (*)(void))session_read, METH_VARARGS | METH_KEYWORDS, read_doc},
    {"fork", (PyCFunction)(void (*)(void))session_fork, METH_VARARGS | METH_KEYWORDS, fork_doc},
    {"reset", session_reset, METH_NOARGS, reset_doc},
    {"block_vectors", session_block_vectors, METH_O, block_vectors_doc},
    {"question_vector", session_question_vector, METH_O, question_vector_doc},
    {"listen", (PyCFunction)(void (*)(void))qlpy_listen, METH_VARARGS | METH_KEYWORDS,
     qlpy_listen_doc},
    {"mean_query", session_mean_query, METH_O, mean_query_doc},
    {"rank", (PyCFunction)(void (*)(void))qlpy_rank, METH_VARARGS | METH_KEYWORDS, qlpy_rank_doc},
    {"pin", qlpy_pin, METH_O, qlpy_pin_doc},
    {"excerpt", qlpy_excerpt, METH_O, qlpy_excerpt_doc},
    {"slabs", qlpy_slabs, METH_O, qlpy_slabs_doc},
    {"copy_slab", qlpy_copy_slab, METH_VARARGS, qlpy_copy_slab_doc},
    {"map_slab", qlpy_map_slab, METH_VARARGS, qlpy_map_slab_doc},
    {"state", qlpy_state, METH_NOARGS, qlpy_state_doc},
    {"restore", (PyCFunction)(void (*)(void))qlpy_restore, METH_VARARGS | METH_KEYWORDS,
     qlpy_restore_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject *qlpy_session_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_doc, (void *)session_doc},
        {Py_tp_new, session_new},
        {Py_tp_dealloc, session_dealloc},
        {Py_tp_traverse, session_traverse},
        {Py_tp_clear, session_clear},
        {Py_tp_repr, qlpy_session_repr},
        {Py_tp_methods, methods},
        {Py_tp_members, qlpy_session_members},
        {Py_tp_getset, qlpy_session_attributes},
        {Py_sq_length, session_length},
        {0, NULL},
    };
    static PyType_Spec spec = {
        .name = "quickllama._core.Session",
        .basicsize = sizeof(session_object),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
        .slots = slots,
    };
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
