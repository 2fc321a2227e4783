/* The type Volume: a file whose slabs sessions read where they lie. */
#include "session.h"

typedef struct volume_object {
    PyObject ob_base;
    ql_volume *volume;
} volume_object;

static void volume_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    ql_volume_free(((volume_object *)object)->volume);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static bool budget_of(module_state *state, PyObject *given, int64_t *budget) {
    if (!qlpy_int64(state, given, "budget", budget)) {
        return false;
    }
    return *budget >= 0 ||
           qlpy_fail(state, QL_INVALID_VALUE, "budget must be at least 0 bytes, but is %lld",
                     (long long)*budget);
}

static PyObject *volume_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "budget", NULL};
    module_state *state = PyType_GetModuleState(type);
    PyObject *fd_given, *budget_given = Py_None;
    int fd;
    int64_t budget = INT64_MAX;
    if (!state ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:Volume", names, &fd_given, &budget_given) ||
        !qlpy_int(state, fd_given, "fd", &fd) ||
        (budget_given != Py_None && !budget_of(state, budget_given, &budget))) {
        return NULL;
    }
    ql_error err = {0};
    ql_volume *volume = ql_volume_open(fd, (size_t)budget, &err);
    if (!volume) {
        return qlpy_raise(state, err.code, &err);
    }
    PyObject *object = PyType_GenericAlloc(type, 0);
    if (object) {
        ((volume_object *)object)->volume = volume;
    } else {
        ql_volume_free(volume);
    }
    return object;
}

ql_volume *qlpy_volume(module_state *state, PyObject *value) {
    if (PyObject_TypeCheck(value, state->volume_type)) {
        return ((volume_object *)value)->volume;
    }
    return qlpy_fail(state, QL_INVALID_TYPE, "volume must be a Volume, not %R", Py_TYPE(value));
}

static PyObject *set_budget(PyObject *object, PyObject *given) {
    module_state *state = PyType_GetModuleState(Py_TYPE(object));
    int64_t budget;
    if (!state || !budget_of(state, given, &budget)) {
        return NULL;
    }
    ql_volume_set_budget(((volume_object *)object)->volume, (size_t)budget);
    Py_RETURN_NONE;
}

static PyObject *get_nbytes(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(ql_volume_resident(((volume_object *)object)->volume));
}

static PyObject *get_damaged(PyObject *object, void *unused) {
    (void)unused;
    return PyBool_FromLong(ql_volume_damaged(((volume_object *)object)->volume));
}

static PyGetSetDef attributes[] = {
    {"nbytes", get_nbytes, NULL, PyDoc_STR("Bytes of its slabs that are in memory, at most."),
     NULL},
    {"damaged", get_damaged, NULL,
     PyDoc_STR("Whether the file was shortened, or could not be read, when something of it was\n"
               "needed: its sessions raise FileProblem from then on."),
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"set_budget", set_budget, METH_O,
     PyDoc_STR("set_budget($self, budget, /)\n--\n\n"
               "Another budget, in bytes. Raises InvalidValue, InvalidType.")},
    {NULL, NULL, 0, NULL},
};

static const char volume_doc[] =
    "Volume(fd, budget=None)\n"
    "--\n\n"
    "A file mapped into memory for reading, for Session.map_slab() and Session.restore().\n\n"
    "fd: an open file; it may be closed afterwards. budget: bytes of slabs that stay in memory,\n"
    "those used lately; None: as many as the system likes. Lives as long as sessions use it.\n"
    "Raises InvalidValue, InvalidType, Error (no open file), MemoryError.";

PyTypeObject *qlpy_volume_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_methods, methods},        {Py_tp_doc, (void *)volume_doc}, {Py_tp_new, volume_new},
        {Py_tp_dealloc, volume_dealloc}, {Py_tp_getset, attributes},      {0, NULL},
    };
    static PyType_Spec spec = {
        .name = "quickllama._core.Volume",
        .basicsize = sizeof(volume_object),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
        .slots = slots,
    };
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
