/* Methods of Session that take it apart for a file, and put it together again: the core's
 * ql_session_slabs and its neighbours. */
#include "session.h"

static const char *const PARTS[] = {"first", "pages", "vectors", "keys", NULL};

static bool part_of(module_state *state, PyObject *value, ql_part *part) {
    int chosen = 0;
    bool known = qlpy_choice(state, value, "part", PARTS, &chosen);
    *part = (ql_part)chosen;
    return known;
}

/* A new uint8 array [n]. */
static PyArrayObject *bytes_array(size_t n) {
    npy_intp shape = (npy_intp)n;
    return (PyArrayObject *)PyArray_SimpleNew(1, &shape, NPY_UINT8);
}

/* ---- slabs ---- */

const char qlpy_slabs_doc[] =
    "slabs($self, part, /)\n"
    "--\n\n"
    "What grows with a session lies in slabs of one size, which get full one after the other and\n"
    "never change from then on.\n\n"
    "part: 'first' (the first tokens' keys and values), 'pages' (those of the others), 'vectors'\n"
    "(of blocks), 'keys' (of a session that skims).\n"
    "Returns (bytes of a slab, tokens that one is for, slabs, those dropped, those full), the "
    "last\n"
    "two counted from the first. Tokens are 0 where a part does not grow with the session.\n"
    "Raises InvalidValue, InvalidType, Busy.";

PyObject *qlpy_slabs(PyObject *object, PyObject *part_given) {
    session_object *self = (session_object *)object;
    ql_part part;
    if (!part_of(self->state, part_given, &part) || !qlpy_enter(self)) {
        return NULL;
    }
    ql_error err = {0};
    ql_slabs slabs;
    ql_status status = ql_session_slabs(self->session, part, &slabs, &err);
    qlpy_leave(self);
    if (status != QL_OK) {
        return qlpy_raise(self->state, status, &err);
    }
    return Py_BuildValue("(nLLLL)", (Py_ssize_t)slabs.bytes, (long long)slabs.tokens,
                         (long long)slabs.n, (long long)slabs.n_dropped, (long long)slabs.n_full);
}

const char qlpy_copy_slab_doc[] =
    "copy_slab($self, part, index, /)\n"
    "--\n\n"
    "A copy of a slab: uint8 [bytes], numbers as this machine holds them.\n\n"
    "Raises InvalidValue (no such slab), InvalidType, Busy, FileProblem (it lies in a file that\n"
    "is damaged), MemoryError.";

PyObject *qlpy_copy_slab(PyObject *object, PyObject *args) {
    session_object *self = (session_object *)object;
    PyObject *part_given, *index_given;
    ql_part part;
    int64_t index;
    if (!PyArg_ParseTuple(args, "OO:copy_slab", &part_given, &index_given) ||
        !part_of(self->state, part_given, &part) ||
        !qlpy_int64(self->state, index_given, "index", &index) || !qlpy_enter(self)) {
        return NULL;
    }
    ql_error err = {0};
    ql_slabs slabs;
    ql_status status = ql_session_slabs(self->session, part, &slabs, &err);
    PyArrayObject *out = status == QL_OK ? bytes_array(slabs.bytes) : NULL;
    if (out) {
        PyThreadState *thread = PyEval_SaveThread();
        status = ql_session_copy_slab(self->session, part, index, PyArray_DATA(out), &err);
        PyEval_RestoreThread(thread);
    }
    qlpy_leave(self);
    return qlpy_array(self->state, out, status, &err);
}

const char qlpy_map_slab_doc[] =
    "map_slab($self, part, index, volume, offset, /)\n"
    "--\n\n"
    "From now on a slab, a full one, is its copy in a file: what lies in the volume at offset, a\n"
    "multiple of 4096. All slabs of a session lie in one volume, or in memory.\n\n"
    "Raises InvalidValue (no such slab, one that is not full or lies in a file already, another\n"
    "volume), InvalidType, Busy, FileProblem (the file ends before), MemoryError.";

PyObject *qlpy_map_slab(PyObject *object, PyObject *args) {
    session_object *self = (session_object *)object;
    PyObject *part_given, *index_given, *volume_given, *offset_given;
    ql_part part;
    int64_t index, offset;
    ql_volume *volume;
    if (!PyArg_ParseTuple(args, "OOOO:map_slab", &part_given, &index_given, &volume_given,
                          &offset_given) ||
        !part_of(self->state, part_given, &part) ||
        !qlpy_int64(self->state, index_given, "index", &index) ||
        !qlpy_int64(self->state, offset_given, "offset", &offset) ||
        !(volume = qlpy_volume(self->state, volume_given)) || !qlpy_enter(self)) {
        return NULL;
    }
    ql_error err = {0};
    ql_status status = ql_session_map_slab(self->session, part, index, volume, offset, &err);
    qlpy_leave(self);
    return qlpy_none(self->state, status, &err);
}

/* ---- the rest ---- */

const char qlpy_state_doc[] =
    "state($self)\n"
    "--\n\n"
    "What a session holds beside its slabs: (counters, arrays).\n\n"
    "counters: int: tokens, first tokens and blocks so far, begin and end of the question, "
    "whether\n"
    "its vectors are known (0 or 1), blocks chosen last (-1: none that count).\n"
    "arrays: uint8 each, the bytes of the window's keys [L, G, tokens, D] as they are kept; its\n"
    "local scores, float32 [L, H, tokens]; the sums of queries, float64 [L, H*D]; the question's\n"
    "queries, float32 [L, tokens, H*D], or its vectors, float32 [L, H*D]; chosen blocks, int32\n"
    "[L, topk]. Empty where there is nothing.\n\n"
    "Raises InvalidValue (with pinned blocks), Busy, MemoryError.";

/* A new tuple of arrays [QL_N_ARRAYS]; inside enter and leave. */
static PyObject *state_arrays(session_object *self, const size_t *bytes) {
    PyObject *arrays = PyTuple_New(QL_N_ARRAYS);
    for (ql_array a = 0; arrays && a < QL_N_ARRAYS; a++) {
        ql_error err = {0};
        PyArrayObject *made = bytes_array(bytes[a]);
        ql_status status =
            made ? ql_session_copy_array(self->session, a, PyArray_DATA(made), &err) : QL_OK;
        PyObject *array = qlpy_array(self->state, made, status, &err);
        if (!array || PyTuple_SetItem(arrays, (Py_ssize_t)a, array) < 0) {
            Py_CLEAR(arrays);
        }
    }
    return arrays;
}

PyObject *qlpy_state(PyObject *object, PyObject *unused) {
    (void)unused;
    session_object *self = (session_object *)object;
    if (!qlpy_enter(self)) {
        return NULL;
    }
    ql_error err = {0};
    int64_t counters[QL_N_COUNTERS];
    size_t bytes[QL_N_ARRAYS];
    ql_status status = ql_session_counters(self->session, counters, bytes, &err);
    PyObject *arrays =
        status == QL_OK ? state_arrays(self, bytes) : qlpy_raise(self->state, status, &err);
    qlpy_leave(self);
    PyObject *numbers = arrays ? PyTuple_New(QL_N_COUNTERS) : NULL;
    for (int i = 0; numbers && i < QL_N_COUNTERS; i++) {
        PyObject *number = PyLong_FromLongLong(counters[i]);
        if (!number || PyTuple_SetItem(numbers, i, number) < 0) {
            Py_CLEAR(numbers);
        }
    }
    PyObject *both = numbers ? PyTuple_Pack(2, numbers, arrays) : NULL;
    Py_XDECREF(numbers);
    Py_XDECREF(arrays);
    return both;
}

/* ---- restoring ---- */

/* The arrays whose memory a ql_saved borrows. */
typedef struct borrowed {
    PyArrayObject *arrays[QL_N_ARRAYS + 2 * QL_N_PARTS];
    int n;
} borrowed;

static void give_back(borrowed *b) {
    for (int i = 0; i < b->n; i++) {
        Py_DECREF((PyObject *)b->arrays[i]);
    }
}

static bool borrow(module_state *state, borrowed *b, PyObject *value, const void **data,
                   size_t *bytes) {
    PyArrayObject *array = value ? qlpy_buffer(state, value, "a saved session") : NULL;
    if (!array) {
        return false;
    }
    b->arrays[b->n++] = array;
    *data = PyArray_DATA(array);
    *bytes = (size_t)PyArray_NBYTES(array);
    return true;
}

/* A tuple of n items, or an exception. */
static bool is_tuple(module_state *state, PyObject *value, Py_ssize_t n, const char *what) {
    if (PyTuple_Check(value) && PyTuple_Size(value) == n) {
        return true;
    }
    return qlpy_fail(state, QL_INVALID_TYPE, "%s must be a tuple of %zd, not %R", what, n,
                     Py_TYPE(value));
}

static bool saved_part(module_state *state, PyObject *value, ql_part part, ql_saved *out,
                       borrowed *b) {
    size_t bytes;
    const void *places;
    if (!is_tuple(state, value, 2, "a part") ||
        !borrow(state, b, PyTuple_GetItem(value, 0), &places, &bytes)) {
        return false;
    }
    if (PyArray_TYPE(b->arrays[b->n - 1]) != NPY_INT64) {
        return qlpy_fail(state, QL_INVALID_TYPE, "the places of slabs must be int64");
    }
    out->parts[part].places = places;
    out->parts[part].n = (int64_t)(bytes / sizeof(int64_t));
    return borrow(state, b, PyTuple_GetItem(value, 1), &out->parts[part].inlined,
                  &out->parts[part].inlined_bytes);
}

static bool saved_of(module_state *state, PyObject *counters, PyObject *arrays, PyObject *parts,
                     ql_saved *out, borrowed *b) {
    if (!is_tuple(state, counters, QL_N_COUNTERS, "counters") ||
        !is_tuple(state, arrays, QL_N_ARRAYS, "arrays") ||
        !is_tuple(state, parts, QL_N_PARTS, "parts")) {
        return false;
    }
    for (int i = 0; i < QL_N_COUNTERS; i++) {
        if (!qlpy_int64(state, PyTuple_GetItem(counters, i), "a counter", &out->counters[i])) {
            return false;
        }
    }
    for (int a = 0; a < QL_N_ARRAYS; a++) {
        if (!borrow(state, b, PyTuple_GetItem(arrays, a), &out->arrays[a], &out->array_bytes[a])) {
            return false;
        }
    }
    for (ql_part part = 0; part < QL_N_PARTS; part++) {
        if (!saved_part(state, PyTuple_GetItem(parts, part), part, out, b)) {
            return false;
        }
    }
    return true;
}

const char qlpy_restore_doc[] =
    "restore($self, counters, arrays, parts, volume=None)\n"
    "--\n\n"
    "Makes an empty session, made for the same model and with the same settings, stand where\n"
    "another one stood: from then on it gives the same bits.\n\n"
    "counters, arrays: what state() gave. parts: for 'first', 'pages', 'vectors' and 'keys' a "
    "tuple\n"
    "(places, slabs). places: int64 [n], for each slab its offset in the volume, -1 if it was\n"
    "dropped, -2 if it is the next one of slabs: bytes of those that are copied.\n\n"
    "Raises FileProblem for what does not fit together; the session is empty then. InvalidValue\n"
    "(not empty), InvalidType, Busy, MemoryError.";

PyObject *qlpy_restore(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"counters", "arrays", "parts", "volume", NULL};
    session_object *self = (session_object *)object;
    PyObject *counters, *arrays, *parts, *volume_given = Py_None;
    ql_volume *volume = NULL;
    ql_saved saved = {0};
    borrowed b = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O:restore", names, &counters, &arrays,
                                     &parts, &volume_given) ||
        (volume_given != Py_None && !(volume = qlpy_volume(self->state, volume_given)))) {
        return NULL;
    }
    bool done = false;
    if (saved_of(self->state, counters, arrays, parts, &saved, &b) && qlpy_enter(self)) {
        ql_error err = {0};
        ql_status status;
        PyThreadState *thread = PyEval_SaveThread();
        status = ql_session_restore(self->session, &saved, volume, &err);
        PyEval_RestoreThread(thread);
        qlpy_leave(self);
        done = status == QL_OK || qlpy_raise(self->state, status, &err);
    }
    give_back(&b);
    if (!done) {
        return NULL;
    }
    Py_RETURN_NONE;
}
