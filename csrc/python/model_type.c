/* The type Model: a sealed core model and the arrays that it reads. */
#include "convert.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>

/* ---- weights: see module.h ---- */

struct weights {
    atomic_int owners;
    ql_model *model;
    PyObject *arrays; /* list of the ndarrays borrowed by model */
};

static weights *new_weights(ql_model *model) {
    weights *made = PyMem_Malloc(sizeof *made);
    PyObject *arrays = PyList_New(0);
    if (!made || !arrays) {
        PyMem_Free(made);
        Py_XDECREF(arrays);
        ql_model_free(model);
        PyErr_NoMemory();
        return NULL;
    }
    atomic_init(&made->owners, 1);
    made->model = model;
    made->arrays = arrays;
    return made;
}

weights *qlpy_weights_retain(weights *owned) {
    atomic_fetch_add(&owned->owners, 1);
    return owned;
}

void qlpy_weights_release(weights *owned) {
    if (owned && atomic_fetch_sub(&owned->owners, 1) == 1) {
        ql_model_free(owned->model); /* before the memory that it reads */
        Py_DECREF(owned->arrays);
        PyMem_Free(owned);
    }
}

ql_model *qlpy_weights_model(const weights *owned) { return owned->model; }

/* ---- the object ---- */

typedef enum stage { EMPTY, BUILDING, READY } stage;

typedef struct model_object {
    PyObject ob_base;
    module_state *state; /* of the module, which lives as long as its types */
    weights *weights;    /* when READY */
    atomic_int stage;
} model_object;

static void model_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    qlpy_weights_release(((model_object *)object)->weights);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int model_traverse(PyObject *object, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(object));
    return 0;
}

/* The state of the module that made our type, of which type may be a subclass. */
static module_state *state_of(PyTypeObject *type) {
    while (PyType_GetSlot(type, Py_tp_dealloc) != (void *)model_dealloc) {
        type = PyType_GetSlot(type, Py_tp_base);
    }
    return PyType_GetModuleState(type);
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    module_state *state = state_of(type);
    PyObject *object = state ? PyType_GenericAlloc(type, 0) : NULL;
    if (object) {
        model_object *self = (model_object *)object;
        self->state = state;
        self->weights = NULL;
        atomic_init(&self->stage, EMPTY);
    }
    return object;
}

/* The weights, when __init__ has done its work; otherwise an exception. */
static weights *ready(model_object *self) {
    if (atomic_load(&self->stage) == READY) {
        return self->weights;
    }
    return qlpy_fail(self->state, QL_BUSY,
                     "this Model has no weights: its __init__ was not run or did not succeed; a "
                     "subclass must call super().__init__(...) first");
}

weights *qlpy_model_weights(module_state *state, PyObject *model) {
    if (!PyObject_TypeCheck(model, state->model_type)) {
        return qlpy_fail(state, QL_INVALID_TYPE, "model must be a Model, not %R", Py_TYPE(model));
    }
    return ready((model_object *)model);
}

/* ---- building ---- */

static bool set_tensor(module_state *state, weights *owned, PyObject *item) {
    tensor given;
    if (!qlpy_tensor(state, item, &given)) {
        return false;
    }
    ql_error err = {0};
    bool borrowed = false;
    ql_status status;
    Py_BEGIN_ALLOW_THREADS status = ql_model_set(owned->model, given.name, given.data, given.dtype,
                                                 given.shape, given.rank, true, &borrowed, &err);
    Py_END_ALLOW_THREADS bool ok = status == QL_OK || qlpy_raise(state, status, &err);
    if (ok && borrowed) {
        ok = PyList_Append(owned->arrays, (PyObject *)given.array) == 0;
    }
    Py_DECREF(given.array);
    return ok;
}

static bool set_tensors(module_state *state, weights *owned, PyObject *tensors) {
    PyObject *iterator = PyObject_GetIter(tensors);
    if (!iterator) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            qlpy_fail(state, QL_INVALID_TYPE,
                      "tensors must be an iterable of (name, data, dtype, shape), not %R",
                      Py_TYPE(tensors));
        }
        return false;
    }
    PyObject *item;
    while ((item = PyIter_Next(iterator))) {
        bool ok = set_tensor(state, owned, item);
        Py_DECREF(item);
        if (!ok) {
            break;
        }
    }
    Py_DECREF(iterator);
    return !PyErr_Occurred();
}

static weights *build(module_state *state, PyObject *config_dict, PyObject *tensors,
                      PyObject *dtype_name, PyObject *threads) {
    ql_config config;
    ql_dtype dtype;
    int n_threads;
    ql_error err = {0};
    if (!qlpy_config(state, config_dict, &config) ||
        !qlpy_held(state, dtype_name, "dtype", &dtype) ||
        !qlpy_int(state, threads, "n_threads", &n_threads)) {
        return NULL;
    }
    ql_model *model = ql_model_new(&config, dtype, n_threads, &err);
    if (!model) {
        return qlpy_raise(state, err.code, &err);
    }
    weights *made = new_weights(model);
    if (made && set_tensors(state, made, tensors)) {
        ql_status status;
        PyThreadState *thread = PyEval_SaveThread();
        status = ql_model_seal(model, &err);
        PyEval_RestoreThread(thread);
        if (status == QL_OK) {
            return made;
        }
        qlpy_raise(state, status, &err);
    }
    qlpy_weights_release(made);
    return NULL;
}

static int model_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"config", "tensors", "dtype", "n_threads", NULL};
    model_object *self = (model_object *)object;
    PyObject *config, *tensors, *dtype, *n_threads;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:Model", names, &config, &tensors, &dtype,
                                     &n_threads)) {
        return -1;
    }
    int empty = EMPTY;
    if (!atomic_compare_exchange_strong(&self->stage, &empty, BUILDING)) {
        qlpy_fail(self->state, QL_BUSY,
                  "this Model's __init__ has been called already: a model never changes once it "
                  "is made; make a new one");
        return -1;
    }
    self->weights = build(self->state, config, tensors, dtype, n_threads);
    atomic_store(&self->stage, self->weights ? READY : EMPTY);
    return self->weights ? 0 : -1;
}

/* ---- computing ---- */

static const char forward_doc[] =
    "forward($self, ids, logits_to_keep=0)\n"
    "--\n\n"
    "Full causal attention over one text, from nothing.\n\n"
    "ids: token ids, [T] or [1, T] of any integer dtype, or a list of int; T in 1 ...\n"
    "    131072.\n"
    "logits_to_keep: logits of so many last tokens, 0 ... T; 0 means of all.\n\n"
    "Returns a new float32 array [T or logits_to_keep, vocab].\n\n"
    "Raises InvalidValue (an id out of range, no token, too many), InvalidType (ids that\n"
    "are no integers), MemoryError; KeyboardInterrupt is served while it computes.";

static bool get_keep(module_state *state, PyObject *value, int64_t n, int64_t *keep) {
    *keep = 0;
    if (n > QL_MAX_FULL) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "ids has %lld tokens, and forward, which attends to all pairs of them, "
                         "takes at most %d; read longer texts through a session's memory",
                         (long long)n, QL_MAX_FULL);
    }
    if (value && !qlpy_int64(state, value, "logits_to_keep", keep)) {
        return false;
    }
    if (*keep < 0 || *keep > n) {
        return qlpy_fail(state, QL_INVALID_VALUE,
                         "logits_to_keep is %lld; expected 0 (all) to %lld, the number of tokens",
                         (long long)*keep, (long long)n);
    }
    *keep = *keep ? *keep : n;
    return true;
}

static PyObject *model_forward(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ids", "logits_to_keep", NULL};
    model_object *self = (model_object *)object;
    PyObject *ids_given, *keep_given = NULL;
    weights *owned = ready(self);
    if (!owned ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:forward", names, &ids_given, &keep_given)) {
        return NULL;
    }
    int vocab_size = ql_model_config(owned->model)->vocab_size;
    PyArrayObject *ids = qlpy_ids(self->state, ids_given, vocab_size);
    if (!ids) {
        return NULL;
    }
    int64_t n = PyArray_SIZE(ids), keep;
    PyArrayObject *logits = NULL; /* [keep, V] */
    if (get_keep(self->state, keep_given, n, &keep)) {
        logits = qlpy_floats(2, (npy_intp[]){keep, vocab_size});
    }
    if (logits) {
        ql_error err = {0};
        ql_feed feed = {0};
        interruptible call;
        qlpy_release_gil(&call, &feed);
        ql_status status = ql_model_forward(owned->model, PyArray_DATA(ids), n, keep, &feed,
                                            PyArray_DATA(logits), &err);
        if (!qlpy_take_gil(&call, self->state, status, &err)) {
            Py_CLEAR(logits);
        }
    }
    Py_DECREF(ids);
    return (PyObject *)logits;
}

/* ---- attributes ---- */

/* "bfloat16"; of "stored" what it came to, such as "q4+int8". */
static PyObject *held_name(const ql_model *model) {
    ql_dtype held[4] = {ql_model_dtype(model)};
    int n = held[0] == QL_STORED ? ql_model_held(model, held) : 1;
    char text[64];
    for (int i = 0, at = 0; i < n; i++) {
        at += snprintf(text + at, sizeof text - (size_t)at, "%s%s", i ? "+" : "",
                       ql_dtype_name(held[i]));
    }
    return PyUnicode_FromString(text);
}

static PyObject *get_dtype(PyObject *self, void *unused) {
    (void)unused;
    weights *owned = ready((model_object *)self);
    return owned ? held_name(owned->model) : NULL;
}

static PyObject *get_n_threads(PyObject *self, void *unused) {
    (void)unused;
    weights *owned = ready((model_object *)self);
    return owned ? PyLong_FromLong(ql_model_threads(owned->model)) : NULL;
}

static PyObject *get_nbytes(PyObject *self, void *unused) {
    (void)unused;
    weights *owned = ready((model_object *)self);
    return owned ? PyLong_FromSize_t(ql_model_bytes(owned->model)) : NULL;
}

static PyObject *get_size(PyObject *self, void *offset) {
    weights *owned = ready((model_object *)self);
    if (!owned) {
        return NULL;
    }
    const char *config = (const char *)ql_model_config(owned->model);
    return PyLong_FromLong(*(const int *)(config + (uintptr_t)offset));
}

#define SIZE(name, field, doc)                                                                     \
    {name, get_size, NULL, PyDoc_STR(doc), (void *)offsetof(ql_config, field)}

static PyGetSetDef attributes[] = {
    {"dtype", get_dtype, NULL,
     PyDoc_STR("How the matrices are held: 'float32', 'bfloat16', 'int8' or 'q4'; of a model "
               "made\nwith 'stored' what that came to, layers first, such as 'q4+int8'."),
     NULL},
    {"n_threads", get_n_threads, NULL, PyDoc_STR("Threads that compute."), NULL},
    {"nbytes", get_nbytes, NULL,
     PyDoc_STR("Bytes of all weights, those in borrowed arrays included."), NULL},
    SIZE("n_layers", num_hidden_layers, "Layers, L."),
    SIZE("n_heads", num_attention_heads, "Query heads, H."),
    SIZE("n_kv_heads", num_key_value_heads, "Key/value heads, G."),
    SIZE("head_dim", head_dim, "Values of one head, D."),
    SIZE("hidden_size", hidden_size, "Values of one token between layers, E."),
    SIZE("vocab_size", vocab_size, "Token ids are 0 ... vocab_size - 1; V."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyObject *model_repr(PyObject *object) {
    model_object *self = (model_object *)object;
    PyObject *name = PyType_GetName(Py_TYPE(object));
    PyObject *text = NULL, *held = NULL;
    if (name && atomic_load(&self->stage) == READY && (held = held_name(self->weights->model))) {
        ql_model *model = self->weights->model;
        const ql_config *c = ql_model_config(model);
        text = PyUnicode_FromFormat("<%U of %d layers, %d/%d heads of %d, vocabulary %d, %U, "
                                    "%zu MiB, %d threads>",
                                    name, c->num_hidden_layers, c->num_attention_heads,
                                    c->num_key_value_heads, c->head_dim, c->vocab_size, held,
                                    ql_model_bytes(model) >> 20, ql_model_threads(model));
    } else if (name && !PyErr_Occurred()) {
        text = PyUnicode_FromFormat("<%U without weights>", name);
    }
    Py_XDECREF(held);
    Py_XDECREF(name);
    return text;
}

static const char model_doc[] =
    "Model(config, tensors, dtype, n_threads)\n"
    "--\n\n"
    "The weights of a Llama-family model and its forward pass; never changes once it is\n"
    "made.\n\n"
    "config: dict with exactly the fields of the core's ql_config (HuggingFace names;\n"
    "    rope_type is 'default', 'linear' or 'llama3').\n"
    "tensors: iterable of (name, data, dtype, shape): HuggingFace names; data a\n"
    "    C-contiguous array or buffer of float32, float16, uint16 (the bits of bfloat16) or\n"
    "    uint8 (raw bytes); dtype 'float32', 'float16', 'bfloat16' or a GGUF block format\n"
    "    such as 'q8_0'; shape [out, in] or [n].\n"
    "    An array that can be used as it lies is not copied: it is kept alive by the model\n"
    "    and its sessions, and must not be changed.\n"
    "dtype: how the matrices are held: 'float32', 'bfloat16', 'int8' (one scale per row),\n"
    "    'q4' (blocks of 32 with scale and minimum; embedding and head as int8), or 'stored':\n"
    "    each nearly as it comes, see held_as.\n"
    "n_threads: 1 ... 64.\n\n"
    "Raises MissingKey (a key or tensor that is missing or unknown), InvalidValue (sizes,\n"
    "shapes, layouts), InvalidType (types, dtypes), MemoryError, Busy (__init__ called\n"
    "twice).";

static PyMethodDef methods[] = {
    {"forward", (PyCFunction)(void (*)(void))model_forward, METH_VARARGS | METH_KEYWORDS,
     forward_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject *qlpy_model_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_doc, (void *)model_doc}, {Py_tp_new, model_new},           {Py_tp_init, model_init},
        {Py_tp_dealloc, model_dealloc}, {Py_tp_traverse, model_traverse}, {Py_tp_repr, model_repr},
        {Py_tp_methods, methods},       {Py_tp_getset, attributes},       {0, NULL},
    };
    static PyType_Spec spec = {
        .name = "quickllama._core.Model",
        .basicsize = sizeof(model_object),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC |
                 Py_TPFLAGS_IMMUTABLETYPE,
        .slots = slots,
    };
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
