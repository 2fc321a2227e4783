/* The type TraceRecord, a named tuple: what the lookup of one chunk in one layer saw and chose. */
#include "convert.h"

#include <string.h>

static PyStructSequence_Field trace_fields[] = {
    {"layer", "the layer, 0 ... L - 1"},
    {"first_token", "position of the chunk's first token, counted from the session's first"},
    {"n_tokens", "tokens of the chunk"},
    {"block_ids", "int32 array, ascending: the blocks chosen; block b holds the tokens "
                  "n_init + b * block_size ... n_init + (b + 1) * block_size - 1"},
    {"scores", "float32 array [blocks]: the score of every block that there was; [0] of a "
               "trace that keeps choices"},
    {NULL, NULL},
};

PyTypeObject *qlpy_trace_type(void) {
    static PyStructSequence_Desc description = {
        .name = "quickllama._core.TraceRecord",
        .doc = "What one execution chunk looked up in one layer.",
        .fields = trace_fields,
        .n_in_sequence = 5,
    };
    return PyStructSequence_NewType(&description);
}

static PyObject *copied(const void *data, int64_t n, int type, size_t item) {
    npy_intp shape = (npy_intp)n;
    PyObject *array = PyArray_SimpleNew(1, &shape, type);
    if (array && n > 0) {
        memcpy(PyArray_DATA((PyArrayObject *)array), data, (size_t)n * item);
    }
    return array;
}

static PyObject *trace_record(module_state *state, const ql_trace_record *record) {
    PyObject *values[] = {
        PyLong_FromLong(record->layer),
        PyLong_FromLongLong(record->first_token),
        PyLong_FromLong(record->n_tokens),
        copied(record->block_ids, record->n_chosen, NPY_INT32, sizeof(int32_t)),
        copied(record->scores, record->n_blocks, NPY_FLOAT32, sizeof(float)),
    };
    const Py_ssize_t n = sizeof values / sizeof *values;
    PyObject *made = PyStructSequence_New(state->trace_type);
    bool ok = made != NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        ok = ok && values[i];
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (ok) {
            PyStructSequence_SetItem(made, i, values[i]);
        } else {
            Py_XDECREF(values[i]);
        }
    }
    if (!ok) {
        Py_CLEAR(made);
    }
    return made;
}

PyObject *qlpy_trace(module_state *state, const ql_session *session) {
    int64_t n = ql_session_trace_count(session);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (int64_t i = 0; list && i < n; i++) {
        PyObject *record = trace_record(state, ql_session_trace(session, i));
        if (!record || PyList_SetItem(list, (Py_ssize_t)i, record) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}
