/* Scalars, names, token ids and errors between Python and the core. */
#include "convert.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static PyObject *exception_of(const module_state *state, ql_status status) {
    PyObject *type = state->error;
    switch (status) {
    case QL_INVALID_VALUE: type = state->invalid_value; break;
    case QL_INVALID_TYPE: type = state->invalid_type; break;
    case QL_MISSING_KEY: type = state->missing_key; break;
    case QL_OUT_OF_MEMORY: type = PyExc_MemoryError; break;
    case QL_BUSY: type = state->busy; break;
    case QL_DAMAGED: type = state->file_problem; break;
    default: break;
    }
    return type ? type : PyExc_RuntimeError; /* the module's state is cleared at the very end */
}

void *qlpy_raise(module_state *state, ql_status status, const ql_error *err) {
    /* "replace": the core may have cut a name in the middle of a character */
    PyObject *text = PyUnicode_DecodeUTF8(err->text, (Py_ssize_t)strlen(err->text), "replace");
    if (text) {
        PyErr_SetObject(exception_of(state, status), text);
        Py_DECREF(text);
    }
    return NULL;
}

PyObject *qlpy_none(module_state *state, ql_status status, const ql_error *err) {
    if (status != QL_OK) {
        return qlpy_raise(state, status, err);
    }
    Py_RETURN_NONE;
}

PyObject *qlpy_array(module_state *state, PyArrayObject *array, ql_status status,
                     const ql_error *err) {
    if (status == QL_OK) {
        return (PyObject *)array;
    }
    Py_XDECREF((PyObject *)array);
    return qlpy_raise(state, status, err);
}

void *qlpy_fail(module_state *state, ql_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    PyErr_FormatV(exception_of(state, status), format, args);
    va_end(args);
    return NULL;
}

/* "<what> must be <expected>, not <type>" */
void *qlpy_wrong_type(module_state *state, PyObject *value, const char *what,
                      const char *expected) {
    PyObject *name = PyType_GetName(Py_TYPE(value));
    if (name) {
        qlpy_fail(state, QL_INVALID_TYPE, "%s must be %s, not %U", what, expected, name);
        Py_DECREF(name);
    }
    return NULL;
}

/* The int that value stands for (new reference); bool is none, although Python says so. */
static PyObject *as_index(module_state *state, PyObject *value, const char *what) {
    if (PyBool_Check(value) || PyArray_IsScalar(value, Bool)) { /* which NumPy once took for ints */
        return qlpy_wrong_type(state, value, what, "an int");
    }
    PyObject *index = PyNumber_Index(value);
    if (!index && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        return qlpy_wrong_type(state, value, what, "an int");
    }
    return index;
}

/* How a sentence calls an int (new reference): Python refuses to print very long ones. */
static PyObject *digits(PyObject *number) {
    PyObject *text = PyObject_Str(number);
    if (!text && PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyErr_Clear();
        text = PyUnicode_FromString("a number of thousands of digits");
    }
    return text;
}

static bool int_within(module_state *state, PyObject *value, const char *what, int64_t low,
                       int64_t high, int64_t *out) {
    PyObject *index = as_index(state, value, what);
    if (!index) {
        return false;
    }
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(index, &overflow);
    bool fits = !overflow && number >= low && number <= high;
    PyObject *text = fits ? NULL : digits(index);
    if (text) {
        qlpy_fail(state, QL_INVALID_VALUE, "%s is %U, far out of its range (at most %lld)", what,
                  text, (long long)high);
        Py_DECREF(text);
    }
    Py_DECREF(index);
    *out = number;
    return fits;
}

bool qlpy_int64(module_state *state, PyObject *value, const char *what, int64_t *out) {
    return int_within(state, value, what, INT64_MIN, INT64_MAX, out);
}

bool qlpy_int(module_state *state, PyObject *value, const char *what, int *out) {
    int64_t number;
    if (!int_within(state, value, what, INT32_MIN, INT32_MAX, &number)) {
        return false;
    }
    *out = (int)number;
    return true;
}

bool qlpy_double(module_state *state, PyObject *value, const char *what, double *out) {
    if (PyBool_Check(value)) {
        return qlpy_wrong_type(state, value, what, "a number");
    }
    *out = PyFloat_AsDouble(value);
    if (*out == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            return qlpy_wrong_type(state, value, what, "a number");
        }
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            return qlpy_fail(state, QL_INVALID_VALUE, "%s is too large for a float", what);
        }
        return false;
    }
    return true;
}

bool qlpy_bool(module_state *state, PyObject *value, const char *what, bool *out) {
    if (!PyBool_Check(value)) {
        return qlpy_wrong_type(state, value, what, "True or False");
    }
    *out = value == Py_True;
    return true;
}

const char *qlpy_text(module_state *state, PyObject *value, const char *what) {
    if (!PyUnicode_Check(value)) {
        return qlpy_wrong_type(state, value, what, "a str");
    }
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (!text && !PyErr_ExceptionMatches(PyExc_UnicodeError)) {
        return NULL;
    }
    PyErr_Clear();
    if (!text || strlen(text) != (size_t)size) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "%s is %A: a name holds no zero byte and no lone surrogate", what, value);
    }
    return text;
}

bool qlpy_choice(module_state *state, PyObject *value, const char *what, const char *const *names,
                 int *out) {
    const char *text = qlpy_text(state, value, what);
    if (!text) {
        return false;
    }
    char list[256] = "";
    size_t used = 0;
    for (int i = 0; names[i]; i++) {
        if (!strcmp(text, names[i])) {
            *out = i;
            return true;
        }
        if (used < sizeof list) {
            used += (size_t)snprintf(list + used, sizeof list - used, "%s'%s'", i ? ", " : "",
                                     names[i]);
        }
    }
    return qlpy_fail(state, QL_INVALID_VALUE, "%s is %R; expected one of %s", what, value, list);
}

bool qlpy_dtype(module_state *state, PyObject *value, const char *what, ql_dtype *out) {
    const char *text = qlpy_text(state, value, what);
    if (!text || ql_dtype_parse(text, out)) {
        return text != NULL;
    }
    const char *names[QL_N_DTYPES + 1] = {NULL};
    for (int i = 0; i < QL_N_DTYPES; i++) {
        names[i] = ql_dtype_name((ql_dtype)i);
    }
    int none;
    return qlpy_choice(state, value, what, names, &none); /* whose failure lists them */
}

bool qlpy_held(module_state *state, PyObject *value, const char *what, ql_dtype *out) {
    static const char *const names[] = {"float32", "bfloat16", "int8", "q4", "stored", NULL};
    const char *text = qlpy_text(state, value, what);
    if (!text || ql_held_parse(text, out)) {
        return text != NULL;
    }
    int none;
    return qlpy_choice(state, value, what, names, &none); /* whose failure lists them */
}

bool qlpy_span(module_state *state, PyObject *value, int64_t *begin, int64_t *end) {
    *begin = *end = 0;
    if (value == Py_None) {
        return true;
    }
    if (!(PyTuple_Check(value) || PyList_Check(value)) || PySequence_Size(value) != 2) {
        return qlpy_fail(state, QL_INVALID_TYPE,
                         "query_span must be (start, end), two positions of tokens, or None; "
                         "it is %R",
                         value);
    }
    PyObject *pair = PySequence_Tuple(value);
    bool ok = pair && PyTuple_Size(pair) == 2 &&
              qlpy_int64(state, PyTuple_GetItem(pair, 0), "query_span's start", begin) &&
              qlpy_int64(state, PyTuple_GetItem(pair, 1), "query_span's end", end);
    Py_XDECREF(pair);
    if (ok && (*begin < 0 || *end <= *begin)) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "query_span is (%lld, %lld); expected 0 <= start < end, positions of "
                         "the question's first token and of the one after its last",
                         (long long)*begin, (long long)*end);
    }
    return ok;
}

/* ---- token ids ---- */

/* As the core says it of an id that is an int32. */
static void *bad_id(module_state *state, Py_ssize_t position, PyObject *value, int vocab_size) {
    PyObject *text = value ? digits(value) : NULL;
    if (text) {
        qlpy_fail(
            state, QL_INVALID_VALUE,
            "token id %U at position %zd is outside the vocabulary of %d: ids go from 0 to %d",
            text, position, vocab_size, vocab_size - 1);
        Py_DECREF(text);
    }
    Py_XDECREF(value);
    return NULL;
}

static PyArrayObject *new_ids(Py_ssize_t n) {
    npy_intp shape = n;
    return (PyArrayObject *)PyArray_SimpleNew(1, &shape, NPY_INT32);
}

static void *no_ids(module_state *state) {
    return qlpy_fail(state, QL_INVALID_VALUE,
                     "ids is empty; at least one token is needed to compute anything");
}

static const char IDS[] = "a 1-D or [1, T] array of an integer dtype, or a list of int";

static PyArrayObject *ids_of_array(module_state *state, PyArrayObject *array, int vocab_size) {
    int rank = PyArray_NDIM(array);
    if (!PyTypeNum_ISINTEGER(PyArray_TYPE(array))) {
        return qlpy_fail(state, QL_INVALID_TYPE, "ids must be %s, not an array of %S", IDS,
                         PyArray_DESCR(array));
    }
    if (rank < 1 || rank > 2 || (rank == 2 && PyArray_DIM(array, 0) != 1)) {
        PyObject *shape = PyObject_GetAttrString((PyObject *)array, "shape");
        if (shape) {
            qlpy_fail(state, QL_INVALID_VALUE,
                      "ids has shape %S; expected %s: one sequence of tokens at a time", shape,
                      IDS);
            Py_DECREF(shape);
        }
        return NULL;
    }
    npy_intp n = PyArray_SIZE(array);
    if (n == 0) {
        return no_ids(state);
    }
    bool large = PyTypeNum_ISUNSIGNED(PyArray_TYPE(array)) && PyArray_ITEMSIZE(array) == 8;
    PyArray_Descr *wide = PyArray_DescrFromType(large ? NPY_UINT64 : NPY_INT64);
    PyArrayObject *source = (PyArrayObject *)PyArray_FromArray(array, wide, NPY_ARRAY_CARRAY_RO);
    PyArrayObject *ids = source ? new_ids(n) : NULL;
    if (ids) {
        const int64_t *from = PyArray_DATA(source); /* above INT64_MAX: negative */
        int32_t *to = PyArray_DATA(ids);
        npy_intp i = 0;
        for (; i < n && from[i] >= 0 && from[i] <= INT32_MAX; i++) {
            to[i] = (int32_t)from[i];
        }
        if (i < n) {
            PyObject *value = large ? PyLong_FromUnsignedLongLong((unsigned long long)from[i])
                                    : PyLong_FromLongLong(from[i]);
            bad_id(state, i, value, vocab_size);
            Py_CLEAR(ids);
        }
    }
    Py_XDECREF((PyObject *)source);
    return ids;
}

static PyArrayObject *ids_of_tuple(module_state *state, PyObject *tuple, int vocab_size) {
    Py_ssize_t n = PyTuple_Size(tuple);
    if (n == 0) {
        return no_ids(state);
    }
    PyArrayObject *ids = new_ids(n);
    if (!ids) {
        return NULL;
    }
    int32_t *to = PyArray_DATA(ids);
    for (Py_ssize_t i = 0; i < n; i++) {
        char what[48];
        snprintf(what, sizeof what, "ids[%zd]", i);
        PyObject *index = as_index(state, PyTuple_GetItem(tuple, i), what);
        if (!index) {
            Py_DECREF(ids);
            return NULL;
        }
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(index, &overflow);
        if (overflow || value < 0 || value > INT32_MAX) {
            Py_DECREF(ids);
            return bad_id(state, i, index, vocab_size);
        }
        Py_DECREF(index);
        to[i] = (int32_t)value;
    }
    return ids;
}

static PyArrayObject *ids_of_sequence(module_state *state, PyObject *value, int vocab_size) {
    PyObject *tuple = PySequence_Tuple(value); /* nobody can change it while we look */
    if (tuple && PyTuple_Size(tuple) == 1) {
        PyObject *row = PyTuple_GetItem(tuple, 0);
        if (PyList_Check(row) || PyTuple_Check(row)) { /* [1, T] */
            PyObject *inner = PySequence_Tuple(row);
            Py_DECREF(tuple);
            tuple = inner;
        }
    }
    PyArrayObject *ids = tuple ? ids_of_tuple(state, tuple, vocab_size) : NULL;
    Py_XDECREF(tuple);
    return ids;
}

PyArrayObject *qlpy_ids(module_state *state, PyObject *value, int vocab_size) {
    if (PyArray_Check(value)) {
        return ids_of_array(state, (PyArrayObject *)value, vocab_size);
    }
    if (PyList_Check(value) || PyTuple_Check(value) || PyRange_Check(value)) {
        return ids_of_sequence(state, value, vocab_size);
    }
    if (PyUnicode_Check(value)) {
        return qlpy_fail(state, QL_INVALID_TYPE,
                         "ids must be %s, not str; encode the text first (tokenizer.encode)", IDS);
    }
    bool bytes = PyBytes_Check(value) || PyByteArray_Check(value);
    if (bytes || !(PyObject_CheckBuffer(value) || PyObject_HasAttrString(value, "__array__"))) {
        return qlpy_wrong_type(state, value, "ids", IDS);
    }
    PyObject *array = PyArray_FromAny(value, NULL, 0, 0, 0, NULL);
    if (!array) {
        return NULL;
    }
    PyArrayObject *ids = ids_of_array(state, (PyArrayObject *)array, vocab_size);
    Py_DECREF(array);
    return ids;
}

PyArrayObject *qlpy_floats(int rank, const npy_intp *shape) {
    return (PyArrayObject *)PyArray_SimpleNew(rank, shape, NPY_FLOAT32);
}
