/* The module quickllama._core: its state, and the functions that belong to no object. */
#define QLPY_IMPORTS_NUMPY
#include "convert.h"

#include "blas.h"
#include "quant.h"

static module_state *state_of(PyObject *module) { return PyModule_GetState(module); }

/* ---- functions ---- */

static const char cpu_variants_doc[] =
    "cpu_variants()\n"
    "--\n\n"
    "The variants of the kernels that run on this CPU, best first: a tuple of names.";

static PyObject *cpu_variants(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    const char *names[QL_MAX_VARIANTS];
    int n = ql_cpu_variants(names);
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple && i < n; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (!name || PyTuple_SetItem(tuple, i, name) < 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

static const char cpu_variant_doc[] = "cpu_variant()\n"
                                      "--\n\n"
                                      "The name of the variant that new models get.";

static PyObject *cpu_variant(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyUnicode_FromString(ql_cpu_variant());
}

static const char set_cpu_variant_doc[] =
    "set_cpu_variant(name, /)\n"
    "--\n\n"
    "Chooses the variant that new models get, of those in cpu_variants(); None: the best\n"
    "one.\n"
    "Raises InvalidValue for any other name, InvalidType for what is no str.";

static PyObject *set_cpu_variant(PyObject *module, PyObject *given) {
    module_state *state = state_of(module);
    const char *name = NULL;
    if (given != Py_None && !(name = qlpy_text(state, given, "the name of a CPU variant"))) {
        return NULL;
    }
    ql_error err = {0};
    ql_status status = ql_set_cpu_variant(name, &err);
    return qlpy_none(state, status, &err);
}

static const char computes_bfloat16_doc[] =
    "computes_bfloat16()\n"
    "--\n\n"
    "Whether the CPU multiplies bfloat16 numbers by itself.";

static PyObject *computes_bfloat16(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyBool_FromLong(ql_cpu_computes_bf16());
}

static const char blas_name_doc[] =
    "blas_name()\n"
    "--\n\n"
    "The linear algebra library in use: its name, version and kernels, such as 'OpenBLAS\n"
    "0.3 ...'.";

static PyObject *blas_name(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyUnicode_FromString(ql_blas_name());
}

static const char decode_doc[] =
    "decode(raw, dtype, n)\n"
    "--\n\n"
    "Stored values as float32.\n\n"
    "raw: C-contiguous array or buffer with exactly the bytes of n values.\n"
    "dtype: 'float32', 'float16', 'bfloat16' or a GGUF block format such as 'q4_1'.\n"
    "n: how many values; a multiple of the format's block (32 or 256).\n\n"
    "Returns a new float32 array [n]. Raises InvalidValue (a size that does not fit, an\n"
    "unknown dtype), InvalidType, MemoryError.";

static bool check_decode(module_state *state, PyArrayObject *raw, ql_dtype dtype, int64_t n) {
    int64_t block = (int64_t)ql_dtype_block(dtype), n_bytes;
    if (n < 0 || n % block != 0) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "n is %lld; values of %s come in blocks of %lld, so that n must be a "
                         "multiple of it and not negative",
                         (long long)n, ql_dtype_name(dtype), (long long)block);
    }
    if (__builtin_mul_overflow(n / block, (int64_t)ql_dtype_block_bytes(dtype), &n_bytes) ||
        n_bytes != (int64_t)PyArray_NBYTES(raw)) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "raw has %lld bytes, which is not what %lld values of %s need",
                         (long long)PyArray_NBYTES(raw), (long long)n, ql_dtype_name(dtype));
    }
    return true;
}

static PyObject *decode(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"raw", "dtype", "n", NULL};
    module_state *state = state_of(module);
    PyObject *raw_given, *dtype_given, *n_given;
    ql_dtype dtype;
    int64_t n;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:decode", names, &raw_given, &dtype_given,
                                     &n_given) ||
        !qlpy_dtype(state, dtype_given, "dtype", &dtype) || !qlpy_int64(state, n_given, "n", &n)) {
        return NULL;
    }
    PyArrayObject *raw = qlpy_buffer(state, raw_given, "raw");
    PyArrayObject *out = NULL;
    if (raw && check_decode(state, raw, dtype, n)) {
        npy_intp shape = (npy_intp)n;
        out = qlpy_floats(1, &shape);
    }
    if (out) {
        PyThreadState *thread = PyEval_SaveThread();
        ql_decode(PyArray_DATA(out), PyArray_DATA(raw), dtype, (size_t)n);
        PyEval_RestoreThread(thread);
    }
    Py_XDECREF((PyObject *)raw);
    return (PyObject *)out;
}

static const char held_as_doc[] =
    "held_as($module, dtype, stored, vocabulary=False)\n"
    "--\n\n"
    "How a model made with dtype ('stored', ...) holds a matrix that comes as stored ('q4_1',\n"
    "...): 'float32', 'bfloat16', 'int8' or 'q4'. vocabulary: of the embedding or the head.\n\n"
    "Raises InvalidValue for a name that is not known, InvalidType for what is no name.";

static PyObject *held_as(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"dtype", "stored", "vocabulary", NULL};
    module_state *state = state_of(module);
    PyObject *dtype_given, *stored_given;
    int vocabulary = 0;
    ql_dtype dtype, stored;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|p:held_as", names, &dtype_given,
                                     &stored_given, &vocabulary) ||
        !qlpy_held(state, dtype_given, "dtype", &dtype) ||
        !qlpy_dtype(state, stored_given, "stored", &stored)) {
        return NULL;
    }
    return PyUnicode_FromString(ql_dtype_name(ql_held_as(dtype, stored, vocabulary)));
}

static PyMethodDef functions[] = {
    {"cpu_variants", cpu_variants, METH_NOARGS, cpu_variants_doc},
    {"cpu_variant", cpu_variant, METH_NOARGS, cpu_variant_doc},
    {"set_cpu_variant", set_cpu_variant, METH_O, set_cpu_variant_doc},
    {"computes_bfloat16", computes_bfloat16, METH_NOARGS, computes_bfloat16_doc},
    {"blas_name", blas_name, METH_NOARGS, blas_name_doc},
    {"decode", (PyCFunction)(void (*)(void))decode, METH_VARARGS | METH_KEYWORDS, decode_doc},
    {"held_as", (PyCFunction)(void (*)(void))held_as, METH_VARARGS | METH_KEYWORDS, held_as_doc},
    {NULL, NULL, 0, NULL},
};

/* ---- the module ---- */

static bool get_errors(module_state *state) {
    PyObject *errors = PyImport_ImportModule("quickllama.errors");
    if (!errors) {
        return false;
    }
    state->error = PyObject_GetAttrString(errors, "Error");
    state->invalid_value = PyObject_GetAttrString(errors, "InvalidValue");
    state->invalid_type = PyObject_GetAttrString(errors, "InvalidType");
    state->missing_key = PyObject_GetAttrString(errors, "MissingKey");
    state->busy = PyObject_GetAttrString(errors, "Busy");
    state->file_problem = PyObject_GetAttrString(errors, "FileProblem");
    Py_DECREF(errors);
    return !PyErr_Occurred();
}

static bool add_types(PyObject *module, module_state *state) {
    state->model_type = qlpy_model_type(module);
    state->session_type = qlpy_session_type(module);
    state->trace_type = qlpy_trace_type();
    state->volume_type = qlpy_volume_type(module);
    return state->model_type && state->session_type && state->trace_type && state->volume_type &&
           PyModule_AddType(module, state->model_type) == 0 &&
           PyModule_AddType(module, state->session_type) == 0 &&
           PyModule_AddType(module, state->trace_type) == 0 &&
           PyModule_AddType(module, state->volume_type) == 0;
}

static int module_exec(PyObject *module) {
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        PyErr_SetString(PyExc_ImportError,
                        "quickllama cannot be imported in a sub-interpreter, because NumPy "
                        "cannot; use threads or processes");
        return -1;
    }
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    module_state *state = state_of(module);
    return get_errors(state) && add_types(module, state) ? 0 : -1;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = state_of(module);
    Py_VISIT(state->error);
    Py_VISIT(state->invalid_value);
    Py_VISIT(state->invalid_type);
    Py_VISIT(state->missing_key);
    Py_VISIT(state->busy);
    Py_VISIT(state->file_problem);
    Py_VISIT(state->model_type);
    Py_VISIT(state->session_type);
    Py_VISIT(state->trace_type);
    Py_VISIT(state->volume_type);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = state_of(module);
    Py_CLEAR(state->error);
    Py_CLEAR(state->invalid_value);
    Py_CLEAR(state->invalid_type);
    Py_CLEAR(state->missing_key);
    Py_CLEAR(state->busy);
    Py_CLEAR(state->file_problem);
    Py_CLEAR(state->model_type);
    Py_CLEAR(state->session_type);
    Py_CLEAR(state->trace_type);
    Py_CLEAR(state->volume_type);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* objects guard themselves by atomic flags */
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "quickllama._core",
    .m_doc = PyDoc_STR("The C core of QuickLLaMA for Python. Use the package quickllama, which "
                       "wraps it."),
    .m_size = sizeof(module_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
