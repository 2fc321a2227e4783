/* Methods of Session that find passages for a question and use them again: the core's
 * ql_session_rank and its neighbours. */
#include "session.h"

/* ---- arrays from outside ---- */

/* A new C-contiguous array of the given type and rank, safely cast; nobody else can change it while
 * the core reads it. what: how the sentence calls the value and what it should be. */
static PyArrayObject *array_of(module_state *state, PyObject *value, int type, int rank,
                               const char *what) {
    PyObject *any = PyArray_FROM_O(value); /* first, or a list of floats would pass as integers */
    bool empty = any && PyArray_SIZE((PyArrayObject *)any) == 0; /* [] is an array of floats */
    bool odd = any && !empty && PyArray_ISBOOL((PyArrayObject *)any);
    int flags = NPY_ARRAY_CARRAY_RO | NPY_ARRAY_ENSURECOPY | (empty ? NPY_ARRAY_FORCECAST : 0);
    PyObject *array = any && !odd ? PyArray_FROMANY(any, type, rank, rank, flags) : NULL;
    Py_XDECREF(any);
    PyObject *cause = array ? NULL : PyErr_Occurred();
    if (odd || (cause && (PyErr_GivenExceptionMatches(cause, PyExc_TypeError) ||
                          PyErr_GivenExceptionMatches(cause, PyExc_ValueError)))) {
        PyErr_Clear();
        qlpy_fail(state, QL_INVALID_TYPE, "%s, not %R", what, value);
    }
    return (PyArrayObject *)array;
}

ql_head *qlpy_heads(module_state *state, PyObject *value, int *n) {
    PyArrayObject *array =
        array_of(state, value, NPY_INT64, 2, "heads must be integers [n, 2], (layer, head) each");
    if (!array) {
        return NULL;
    }
    const npy_intp *shape = PyArray_DIMS(array);
    const int64_t *given = PyArray_DATA(array);
    ql_head *heads = NULL;
    if (shape[0] < 1 || shape[0] > INT32_MAX / 4 || shape[1] != 2) {
        qlpy_fail(state, QL_INVALID_VALUE,
                  "heads must have the shape [n, 2] with n >= 1, but have [%zd, %zd]",
                  (Py_ssize_t)shape[0], (Py_ssize_t)shape[1]);
    } else if (!(heads = PyMem_Calloc((size_t)shape[0], sizeof *heads))) {
        PyErr_NoMemory();
    }
    for (npy_intp i = 0; heads && i < shape[0]; i++) {
        bool fits = given[2 * i] >= 0 && given[2 * i] <= INT32_MAX && given[2 * i + 1] >= 0 &&
                    given[2 * i + 1] <= INT32_MAX;
        heads[i] = fits ? (ql_head){(int)given[2 * i], (int)given[2 * i + 1]} : (ql_head){-1, -1};
    }
    *n = (int)shape[0];
    Py_DECREF((PyObject *)array);
    return heads;
}

/* ---- listening ---- */

const char qlpy_listen_doc[] =
    "listen($self, ids, heads, query_span=None)\n"
    "--\n\n"
    "Reads tokens as feed() does, and returns the queries of some heads in place of logits.\n\n"
    "ids, query_span: as in feed(). heads: integers [n_heads, 2], (layer, query head) each.\n"
    "Returns a new float32 array [n_heads, T, head_dim], not rotated.\n\n"
    "For the modes infllm and qllm, and for sessions that skim. Raises what feed() raises, and\n"
    "InvalidValue for heads that the model has not, or that lie above what is computed.";

PyObject *qlpy_listen(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "heads", "query_span", NULL};
    session_object *self = (session_object *)object;
    PyObject *ids_given, *heads_given, *span_given = Py_None;
    ql_feed options = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:listen", names, &ids_given, &heads_given,
                                     &span_given) ||
        !qlpy_span(self->state, span_given, &options.question_begin, &options.question_end)) {
        return NULL;
    }
    const ql_config *config = qlpy_session_config(self);
    ql_head *heads = qlpy_heads(self->state, heads_given, &options.n_heads);
    PyArrayObject *ids = heads ? qlpy_ids(self->state, ids_given, config->vocab_size) : NULL;
    npy_intp shape[] = {options.n_heads, ids ? PyArray_SIZE(ids) : 0, config->head_dim};
    PyArrayObject *queries = ids ? qlpy_floats(3, shape) : NULL;
    if (queries && qlpy_enter(self)) {
        ql_error err = {0};
        interruptible call;
        options.heads = heads;
        options.queries = PyArray_DATA(queries);
        qlpy_release_gil(&call, &options);
        ql_status status =
            ql_session_feed(self->session, PyArray_DATA(ids), shape[1], &options, NULL, &err);
        if (!qlpy_take_gil(&call, self->state, status, &err)) {
            Py_CLEAR(queries);
        }
        qlpy_leave(self);
    } else {
        Py_CLEAR(queries);
    }
    Py_XDECREF((PyObject *)ids);
    PyMem_Free(heads);
    return (PyObject *)queries;
}

/* ---- ranking ---- */

const char qlpy_rank_doc[] =
    "rank($self, heads, queries, begin, end, piece)\n"
    "--\n\n"
    "Scores the tokens [begin, end) in pieces of ``piece`` tokens (the last may be shorter).\n\n"
    "heads: integers [n_heads, 2], (layer, query head) each. queries: float32\n"
    "[n_heads, n_queries, head_dim], not rotated.\n"
    "Returns a new float32 array [n_heads, pieces]: the mean over the queries of the largest\n"
    "product of the query with an un-rotated key of the piece.\n\n"
    "For the modes infllm and qllm, and for the heads that a session skims for. Raises\n"
    "InvalidValue, InvalidType, Busy, MemoryError.";

PyObject *qlpy_rank(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"heads", "queries", "begin", "end", "piece", NULL};
    session_object *self = (session_object *)object;
    PyObject *heads_given, *queries_given, *begin_given, *end_given, *piece_given;
    int64_t begin, end, piece;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO:rank", names, &heads_given,
                                     &queries_given, &begin_given, &end_given, &piece_given) ||
        !qlpy_int64(self->state, begin_given, "begin", &begin) ||
        !qlpy_int64(self->state, end_given, "end", &end) ||
        !qlpy_int64(self->state, piece_given, "piece", &piece)) {
        return NULL;
    }
    int n_heads = 0;
    ql_head *heads = qlpy_heads(self->state, heads_given, &n_heads);
    PyArrayObject *queries =
        heads ? array_of(self->state, queries_given, NPY_FLOAT32, 3,
                         "queries must be float32 [n_heads, n_queries, head_dim]")
              : NULL;
    const npy_intp *given = queries ? PyArray_DIMS(queries) : NULL;
    int head_dim = qlpy_session_config(self)->head_dim;
    PyObject *ranked = NULL;
    if (queries && (given[0] != n_heads || given[2] != head_dim || given[1] > INT32_MAX / 4)) {
        qlpy_fail(self->state, QL_INVALID_VALUE,
                  "queries must have the shape [%d, n_queries, %d], but have [%zd, %zd, %zd]",
                  n_heads, head_dim, (Py_ssize_t)given[0], (Py_ssize_t)given[1],
                  (Py_ssize_t)given[2]);
    } else if (queries && (begin < 0 || end <= begin || piece < 1)) {
        qlpy_fail(self->state, QL_INVALID_VALUE,
                  "rank needs 0 <= begin < end and piece >= 1, but got %lld, %lld and %lld",
                  (long long)begin, (long long)end, (long long)piece);
    } else if (queries && qlpy_enter(self)) {
        ql_error err = {0};
        ql_status status = QL_OK;
        int64_t length = ql_session_length(self->session);
        int64_t last = end < length ? end : length; /* the core refuses what goes beyond */
        npy_intp shape[] = {n_heads, last > begin ? (last - begin - 1) / piece + 1 : 1};
        PyArrayObject *scores = qlpy_floats(2, shape);
        PyThreadState *thread = PyEval_SaveThread();
        if (scores) {
            status = ql_session_rank(self->session, heads, n_heads, PyArray_DATA(queries),
                                     (int)given[1], begin, end, piece, PyArray_DATA(scores), &err);
        }
        PyEval_RestoreThread(thread);
        qlpy_leave(self);
        ranked = qlpy_array(self->state, scores, status, &err);
    }
    Py_XDECREF((PyObject *)queries);
    PyMem_Free(heads);
    return ranked;
}

/* ---- using what was found ---- */

const char qlpy_pin_doc[] =
    "pin($self, blocks, /)\n"
    "--\n\n"
    "From now on every lookup, in all layers, chooses these blocks; None: by score again.\n\n"
    "blocks: integers [n], ascending; none at all are allowed. For the modes infllm and qllm.\n"
    "Raises InvalidValue, InvalidType, Busy, MemoryError.";

/* Block ids [n] as the core takes them; to be freed with PyMem_Free. */
static int32_t *blocks_of(module_state *state, PyObject *value, int *n) {
    PyArrayObject *array =
        array_of(state, value, NPY_INT64, 1, "blocks must be integers [n], ascending, or None");
    int32_t *blocks = array ? PyMem_Calloc((size_t)PyArray_SIZE(array) + 1, sizeof *blocks) : NULL;
    if (array && !blocks) {
        PyErr_NoMemory();
    }
    *n = array ? (int)PyArray_SIZE(array) : 0;
    for (int i = 0; blocks && i < *n; i++) {
        int64_t block = ((const int64_t *)PyArray_DATA(array))[i];
        blocks[i] = block < 0 || block > INT32_MAX ? -1 : (int32_t)block; /* the core refuses -1 */
    }
    Py_XDECREF((PyObject *)array);
    return blocks;
}

PyObject *qlpy_pin(PyObject *object, PyObject *blocks_given) {
    session_object *self = (session_object *)object;
    int n = -1;
    int32_t *blocks = NULL;
    if (blocks_given != Py_None && !(blocks = blocks_of(self->state, blocks_given, &n))) {
        return NULL;
    }
    ql_error err = {0};
    ql_status status = QL_OK;
    bool entered = qlpy_enter(self);
    if (entered) {
        status = ql_session_pin(self->session, blocks, n, &err);
        qlpy_leave(self);
    }
    PyMem_Free(blocks);
    if (!entered) {
        return NULL;
    }
    return qlpy_none(self->state, status, &err);
}

const char qlpy_excerpt_doc[] =
    "excerpt($self, ranges, /)\n"
    "--\n\n"
    "A new Session of mode full that has read nothing but these tokens, at consecutive\n"
    "positions; their keys and values are taken from here and not computed anew.\n\n"
    "ranges: integers [n, 2], tokens (begin, end) each, ascending and apart. For the modes\n"
    "infllm and qllm. Raises InvalidValue, InvalidType, Busy, MemoryError.";

PyObject *qlpy_excerpt(PyObject *object, PyObject *ranges_given) {
    session_object *self = (session_object *)object;
    PyArrayObject *ranges = array_of(self->state, ranges_given, NPY_INT64, 2,
                                     "ranges must be integers [n, 2], tokens (begin, end) each");
    session_object *made = NULL;
    if (ranges && (PyArray_DIM(ranges, 1) != 2 || PyArray_DIM(ranges, 0) > INT32_MAX / 4)) {
        qlpy_fail(self->state, QL_INVALID_VALUE, "ranges must have the shape [n, 2]");
    } else if (ranges && qlpy_enter(self)) {
        made = qlpy_alloc_session(self->state, self->model ? self->model : Py_None, self->weights);
        if (made) {
            ql_error err = {0};
            PyThreadState *thread = PyEval_SaveThread();
            made->session = ql_session_excerpt(self->session, PyArray_DATA(ranges),
                                               (int)PyArray_DIM(ranges, 0), &err);
            PyEval_RestoreThread(thread);
            made->memory = self->memory;
            made->memory.mode = QL_FULL;
            if (made->session) {
                qlpy_leave(made);
            } else {
                Py_CLEAR(made);
                qlpy_raise(self->state, err.code, &err);
            }
        }
        qlpy_leave(self);
    }
    Py_XDECREF((PyObject *)ranges);
    return (PyObject *)made;
}
