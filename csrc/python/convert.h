/* convert.h - the wall between Python's values and the core's: everything that comes from outside
 * is checked here, and every failure is a sentence. Functions return false, or NULL, with an
 * exception set. The GIL is held in all of them. */
#ifndef QL_PYTHON_CONVERT_H
#define QL_PYTHON_CONVERT_H

#include "module.h"

#define PY_ARRAY_UNIQUE_SYMBOL qlpy_array_api
#ifndef QLPY_IMPORTS_NUMPY /* defined by module.c alone */
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

/* The one place where a core error becomes an exception. Returns NULL, to be returned. */
void *qlpy_raise(module_state *state, ql_status status, const ql_error *err);
/* The same for a sentence made here; format as in PyErr_Format. */
void *qlpy_fail(module_state *state, ql_status status, const char *format, ...);
/* InvalidType: "`what` must be `expected`, not TYPE". */
void *qlpy_wrong_type(module_state *state, PyObject *value, const char *what, const char *expected);
/* What a method returns: None, or an array (stolen; NULL: with an exception set); after another
 * status than QL_OK its exception. */
PyObject *qlpy_none(module_state *state, ql_status status, const ql_error *err);
PyObject *qlpy_array(module_state *state, PyArrayObject *array, ql_status status,
                     const ql_error *err);

/* what: how the sentence calls the value, such as "n_local". */
bool qlpy_int64(module_state *state, PyObject *value, const char *what, int64_t *out);
bool qlpy_int(module_state *state, PyObject *value, const char *what, int *out);
bool qlpy_double(module_state *state, PyObject *value, const char *what, double *out);
bool qlpy_bool(module_state *state, PyObject *value, const char *what, bool *out);
const char *qlpy_text(module_state *state, PyObject *value, const char *what); /* lives as value */
bool qlpy_dtype(module_state *state, PyObject *value, const char *what, ql_dtype *out);
bool qlpy_held(module_state *state, PyObject *value, const char *what, ql_dtype *out);

/* One of names, which ends with NULL; *out is its index. */
bool qlpy_choice(module_state *state, PyObject *value, const char *what, const char *const *names,
                 int *out);

/* (start, end) with 0 <= start < end; None gives 0, 0. */
bool qlpy_span(module_state *state, PyObject *value, int64_t *begin, int64_t *end);

/* Token ids: 1-D or [1, T] array of any integer dtype, or sequence of int. Returns a new int32
 * array [T] that nobody else knows, T >= 1; whether the vocabulary has them is the core's to
 * check. */
PyArrayObject *qlpy_ids(module_state *state, PyObject *value, int vocab_size);

/* The dictionary of ql_config's fields. */
bool qlpy_config(module_state *state, PyObject *value, ql_config *out);

enum { MAX_RANK = 4 };

/* One tensor as the core takes it. */
typedef struct tensor {
    const char *name;     /* lives as the tuple */
    PyArrayObject *array; /* owned: holds the memory of data */
    const void *data;
    size_t n_bytes;
    ql_dtype dtype;
    int64_t shape[MAX_RANK];
    int rank;
} tensor;

/* From (name, data, dtype, shape); release with Py_DECREF(out->array). */
bool qlpy_tensor(module_state *state, PyObject *value, tensor *out);

/* An ndarray, or a buffer as one (new reference): C-contiguous, native, aligned for its dtype.
 * what: whose data it is. */
PyArrayObject *qlpy_buffer(module_state *state, PyObject *value, const char *what);

/* New float32 arrays, uninitialised. */
PyArrayObject *qlpy_floats(int rank, const npy_intp *shape);

#endif
