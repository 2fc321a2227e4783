/* Calls into the core without the GIL, and Ctrl-C during them. */
#include "convert.h"

#include <time.h>

static const int64_t CHECK_EVERY = 50 * 1000 * 1000; /* nanoseconds */

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The core asks in every layer, on the thread that called it; true means stop. */
static bool poll_signals(void *context) {
    interruptible *call = context;
    int64_t time = now();
    if (time < call->next_check) {
        return false;
    }
    PyEval_RestoreThread(call->thread);
    bool stop = PyErr_CheckSignals() != 0; /* the exception waits in the thread state */
    call->thread = PyEval_SaveThread();
    call->next_check = now() + CHECK_EVERY;
    return stop;
}

void qlpy_release_gil(interruptible *call, ql_feed *feed) {
    feed->poll = poll_signals;
    feed->poll_context = call;
    call->next_check = now() + CHECK_EVERY;
    call->thread = PyEval_SaveThread();
}

bool qlpy_take_gil(interruptible *call, module_state *state, ql_status status,
                   const ql_error *err) {
    PyEval_RestoreThread(call->thread);
    if (PyErr_Occurred()) { /* whatever the core made of it, the handler's exception counts */
        return false;
    }
    if (status != QL_OK) {
        qlpy_raise(state, status, err);
        return false;
    }
    return true;
}
