/* What a model is made of, as it comes from Python: its configuration and its tensors. */
#include "convert.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "quant.h"

/* ---- configuration ---- */

typedef enum field_kind { INT, DOUBLE, BOOL, ROPE } field_kind;

typedef struct field {
    const char *name;
    field_kind kind;
    size_t offset;
} field;

#define FIELD(name, kind) {#name, kind, offsetof(ql_config, name)}

static const field FIELDS[] = {
    FIELD(vocab_size, INT),
    FIELD(hidden_size, INT),
    FIELD(intermediate_size, INT),
    FIELD(num_hidden_layers, INT),
    FIELD(num_attention_heads, INT),
    FIELD(num_key_value_heads, INT),
    FIELD(head_dim, INT),
    FIELD(rms_norm_eps, DOUBLE),
    FIELD(rope_theta, DOUBLE),
    FIELD(rope_type, ROPE),
    FIELD(rope_factor, DOUBLE),
    FIELD(rope_low_freq_factor, DOUBLE),
    FIELD(rope_high_freq_factor, DOUBLE),
    FIELD(rope_original_max_position, INT),
    FIELD(sliding_window, INT),
    FIELD(qkv_bias, BOOL),
    FIELD(o_bias, BOOL),
    FIELD(mlp_bias, BOOL),
    FIELD(tie_word_embeddings, BOOL),
};

static const int N_FIELDS = (int)(sizeof FIELDS / sizeof *FIELDS);

static bool set_field(module_state *state, PyObject *value, const field *f, ql_config *config) {
    static const char *const rope_types[] = {"default", "linear", "llama3", NULL};
    void *slot = (char *)config + f->offset;
    int choice = 0;
    switch (f->kind) {
    case INT: return qlpy_int(state, value, f->name, slot);
    case DOUBLE: return qlpy_double(state, value, f->name, slot);
    case BOOL: return qlpy_bool(state, value, f->name, slot);
    case ROPE: break;
    }
    if (!qlpy_choice(state, value, f->name, rope_types, &choice)) {
        return false;
    }
    *(ql_rope_type *)slot = (ql_rope_type)choice;
    return true;
}

static const field *find_field(PyObject *key) {
    for (int i = 0; i < N_FIELDS; i++) {
        if (PyUnicode_Check(key) && !PyUnicode_CompareWithASCIIString(key, FIELDS[i].name)) {
            return &FIELDS[i];
        }
    }
    return NULL;
}

bool qlpy_config(module_state *state, PyObject *value, ql_config *out) {
    if (!PyDict_Check(value)) {
        qlpy_fail(state, QL_INVALID_TYPE, "config must be a dict, not %R", Py_TYPE(value));
        return false;
    }
    PyObject *copy = PyDict_Copy(value); /* converting a value may run code that changes the dict */
    if (!copy) {
        return false;
    }
    bool given[sizeof FIELDS / sizeof *FIELDS] = {false};
    bool ok = true;
    Py_ssize_t position = 0;
    PyObject *key, *item;
    while (ok && PyDict_Next(copy, &position, &key, &item)) {
        const field *f = find_field(key);
        if (!f) {
            qlpy_fail(state, QL_MISSING_KEY, "config has the key %R, which is not computed", key);
        }
        ok = f && set_field(state, item, f, out);
        if (ok) {
            given[f - FIELDS] = true;
        }
    }
    for (int i = 0; ok && i < N_FIELDS; i++) {
        if (!given[i]) {
            qlpy_fail(state, QL_MISSING_KEY, "config lacks the key '%s'", FIELDS[i].name);
            ok = false;
        }
    }
    Py_DECREF(copy);
    return ok;
}

/* ---- tensors ---- */

PyArrayObject *qlpy_buffer(module_state *state, PyObject *value, const char *what) {
    PyArrayObject *array = NULL;
    if (PyArray_Check(value)) {
        Py_INCREF(value);
        array = (PyArrayObject *)value;
    } else if (PyObject_CheckBuffer(value)) {
        PyObject *view = PyMemoryView_FromObject(value);
        array = view ? (PyArrayObject *)PyArray_FromAny(view, NULL, 0, 0, 0, NULL) : NULL;
        Py_XDECREF(view);
    } else {
        qlpy_fail(state, QL_INVALID_TYPE,
                  "the data of %s must be an ndarray or a buffer such as bytes, not %R", what,
                  Py_TYPE(value));
    }
    if (!array) {
        return NULL;
    }
    const char *trouble = NULL;
    if (!PyArray_IS_C_CONTIGUOUS(array)) {
        trouble = "is not C-contiguous; pass np.ascontiguousarray(data)";
    } else if (!PyArray_ISNOTSWAPPED(array)) {
        trouble = "is in the other byte order; pass data.astype(data.dtype.newbyteorder('='))";
    } else if (!PyArray_ISALIGNED(array)) {
        trouble = "is not aligned in memory; pass data.copy()";
    }
    if (trouble) {
        qlpy_fail(state, QL_INVALID_VALUE, "the data of %s %s", what, trouble);
        Py_CLEAR(array);
    }
    return array;
}

/* [rank] sizes from a tuple; their product may not leave int64. */
static bool get_shape(module_state *state, PyObject *value, tensor *out, int64_t *n) {
    Py_ssize_t rank = PyTuple_Check(value) ? PyTuple_Size(value) : -1;
    if (rank < 1 || rank > MAX_RANK) {
        return qlpy_fail(state, QL_INVALID_TYPE,
                         "the shape of %s must be a tuple of 1 to %d sizes; it is %R", out->name,
                         MAX_RANK, value);
    }
    out->rank = (int)rank;
    *n = 1;
    for (int i = 0; i < out->rank; i++) {
        int64_t *size = &out->shape[i];
        if (!qlpy_int64(state, PyTuple_GetItem(value, i), "a size of a shape", size)) {
            return false;
        }
        if (*size < 1 || __builtin_mul_overflow(*n, *size, n)) {
            return qlpy_fail(state, QL_INVALID_VALUE,
                             "the shape of %s is %R; each size must be at least 1 and their "
                             "product a number of values that exists",
                             out->name, value);
        }
    }
    return true;
}

/* Whether an array of this NumPy dtype can hold values of the stored dtype. */
static bool can_hold(int type, ql_dtype dtype) {
    if (type == NPY_UINT8) { /* raw bytes, whatever they mean */
        return true;
    }
    switch (dtype) {
    case QL_F32: return type == NPY_FLOAT32;
    case QL_F16: return type == NPY_FLOAT16;
    case QL_BF16: return type == NPY_UINT16;
    default: return false;
    }
}

/* The array has n values of out->dtype, where the core can read them. */
static bool check_data(module_state *state, tensor *out, int64_t n) {
    const char *dtype = ql_dtype_name(out->dtype);
    if (!can_hold(PyArray_TYPE(out->array), out->dtype)) {
        return qlpy_fail(state, QL_INVALID_TYPE,
                         "the data of %s is an array of %S, but values of dtype %s come as %s",
                         out->name, PyArray_DESCR(out->array), dtype,
                         out->dtype == QL_F32    ? "float32"
                         : out->dtype == QL_F16  ? "float16"
                         : out->dtype == QL_BF16 ? "uint16 (the bits), or raw bytes (uint8)"
                                                 : "raw bytes (uint8)");
    }
    int64_t block = (int64_t)ql_dtype_block(out->dtype);
    if (out->shape[out->rank - 1] % block != 0) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "the last size of the shape of %s is %lld, but %s is stored in blocks of "
                         "%lld values",
                         out->name, (long long)out->shape[out->rank - 1], dtype, (long long)block);
    }
    int64_t expected;
    if (__builtin_mul_overflow(n / block, (int64_t)ql_dtype_block_bytes(out->dtype), &expected) ||
        (int64_t)PyArray_NBYTES(out->array) != expected) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "the data of %s has %lld bytes, which is not what its shape and dtype %s "
                         "need (%lld values)",
                         out->name, (long long)PyArray_NBYTES(out->array), dtype, (long long)n);
    }
    out->data = PyArray_DATA(out->array);
    out->n_bytes = (size_t)expected;
    size_t item = out->dtype == QL_F32 ? 4 : block == 1 ? 2 : 1;
    if ((uintptr_t)out->data % item != 0) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "the data of %s is not aligned in memory; pass data.copy()", out->name);
    }
    return true;
}

bool qlpy_tensor(module_state *state, PyObject *value, tensor *out) {
    if (!PyTuple_Check(value) || PyTuple_Size(value) != 4) {
        return qlpy_fail(state, QL_INVALID_TYPE,
                         "each tensor must be a tuple (name, data, dtype, shape), not %R",
                         Py_TYPE(value));
    }
    int64_t n = 0;
    char what[160];
    out->array = NULL;
    out->name = qlpy_text(state, PyTuple_GetItem(value, 0), "a tensor's name");
    if (!out->name) {
        return false;
    }
    snprintf(what, sizeof what, "the dtype of %.120s", out->name);
    if (!qlpy_dtype(state, PyTuple_GetItem(value, 2), what, &out->dtype) ||
        !get_shape(state, PyTuple_GetItem(value, 3), out, &n)) {
        return false;
    }
    out->array = qlpy_buffer(state, PyTuple_GetItem(value, 1), out->name);
    if (out->array && !check_data(state, out, n)) {
        Py_CLEAR(out->array);
    }
    return out->array != NULL;
}
