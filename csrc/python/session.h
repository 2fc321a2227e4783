/* session.h - the object behind the type Session, for the files that hold its methods. */
#ifndef QL_PYTHON_SESSION_H
#define QL_PYTHON_SESSION_H

#include "convert.h"

#include <stdatomic.h>
#include <structmember.h>

typedef struct session_object {
    PyObject ob_base;
    module_state *state; /* of the module, which lives as long as its types */
    ql_session *session;
    weights *weights; /* outlives session, whatever the garbage collector takes */
    PyObject *model;  /* the Model; NULL after tp_clear */
    PyObject *weak_references;
    ql_memory_config memory;
    int64_t question_begin, question_end; /* given when made; 0, 0: none */
    atomic_bool in_use;
} session_object;

/* One call at a time: false with Busy set when another one is under way. The core would say the
 * same, but not in its functions without a status, and not before arrays are made. */
bool qlpy_enter(session_object *self);
void qlpy_leave(session_object *self);

const ql_config *qlpy_session_config(const session_object *self);

extern PyGetSetDef qlpy_session_attributes[];
extern PyMemberDef qlpy_session_members[];
PyObject *qlpy_session_repr(PyObject *object);

/* A Session without its core session; new reference. */
session_object *qlpy_alloc_session(module_state *state, PyObject *model, weights *owned);

/* Heads [n] from an array [n, 2] of (layer, head), n >= 1; to be freed with PyMem_Free. Those that
 * no model has are (-1, -1). */
ql_head *qlpy_heads(module_state *state, PyObject *value, int *n);

/* The core's volume of a Volume (borrowed), or NULL with InvalidType. */
ql_volume *qlpy_volume(module_state *state, PyObject *value);

/* Methods that find and reuse passages (retrieval_methods.c). */
extern const char qlpy_listen_doc[], qlpy_rank_doc[], qlpy_pin_doc[], qlpy_excerpt_doc[];
PyObject *qlpy_listen(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *qlpy_rank(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *qlpy_pin(PyObject *object, PyObject *blocks);
PyObject *qlpy_excerpt(PyObject *object, PyObject *ranges);

/* Methods that take a session apart for a file, and put it together (state_methods.c). */
extern const char qlpy_slabs_doc[], qlpy_copy_slab_doc[], qlpy_map_slab_doc[], qlpy_state_doc[];
extern const char qlpy_restore_doc[];
PyObject *qlpy_slabs(PyObject *object, PyObject *part);
PyObject *qlpy_copy_slab(PyObject *object, PyObject *args);
PyObject *qlpy_map_slab(PyObject *object, PyObject *args);
PyObject *qlpy_state(PyObject *object, PyObject *unused);
PyObject *qlpy_restore(PyObject *object, PyObject *args, PyObject *kwargs);

#endif
