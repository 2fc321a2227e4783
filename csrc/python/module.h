/* module.h - what the files of the extension share: the state of the module, its types, and calls
 * into the core that can be interrupted. */
#ifndef QL_PYTHON_MODULE_H
#define QL_PYTHON_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ql.h"

typedef struct module_state {
    PyObject *error, *invalid_value, *invalid_type, *missing_key, *busy,
        *file_problem; /* of errors */
    PyTypeObject *model_type, *session_type, *trace_type, *volume_type;
} module_state;

PyTypeObject *qlpy_model_type(PyObject *module);   /* new reference */
PyTypeObject *qlpy_session_type(PyObject *module); /* new reference */
PyTypeObject *qlpy_trace_type(void);               /* new reference */
PyTypeObject *qlpy_volume_type(PyObject *module);  /* new reference */

/* A new list of all trace records; nobody may use the session meanwhile. */
PyObject *qlpy_trace(module_state *state, const ql_session *session);

/* A core model and the arrays whose memory it uses. It has one owner per Model and one per Session
 * and knows nothing of Python's garbage collector, which therefore cannot take the arrays away
 * while a session still computes with them. */
typedef struct weights weights;

weights *qlpy_weights_retain(weights *owned);
void qlpy_weights_release(weights *owned); /* NULL is fine; needs the GIL */
ql_model *qlpy_weights_model(const weights *owned);

/* The weights of a Model (borrowed); NULL and an exception when it is none or was never built. */
weights *qlpy_model_weights(module_state *state, PyObject *model);

/* A call into the core without the GIL that looks for signals now and then:
 *     interruptible call;
 *     ql_feed feed = {...};
 *     qlpy_release_gil(&call, &feed);
 *     status = ql_session_feed(..., &feed, ...);
 *     if (!qlpy_take_gil(&call, state, status, &err)) return NULL;
 */
typedef struct interruptible {
    PyThreadState *thread;
    int64_t next_check; /* nanoseconds of the monotonic clock */
} interruptible;

void qlpy_release_gil(interruptible *call, ql_feed *feed); /* sets feed's poll */
/* False with an exception set: the core's error, or what a signal handler raised. */
bool qlpy_take_gil(interruptible *call, module_state *state, ql_status status, const ql_error *err);

#endif
