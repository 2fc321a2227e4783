#define _GNU_SOURCE /* sched_getaffinity */

#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

/* A worker's life: it waits while IDLE; a region CALLS it; it answers by turning CALLED into
 * RUNNING, works, and is IDLE again. A caller that has run out of items takes back the calls that
 * were not answered yet, so a region never waits for a thread that the operating system has not
 * woken. All orders are sequentially consistent: "state, then asleep" on one side and "asleep, then
 * state" on the other cannot both miss each other. */
enum { IDLE, CALLED, RUNNING };

/* Tasks take up to 150 KB (queries that meet keys), which is more than some systems give (musl: 128
 * KB). A program's thread-local variables lie there, too: ThreadSanitizer's are most of 1 MB. */
enum { STACK_BYTES = 4 << 20 };

typedef struct worker {
    _Alignas(128) atomic_int state;
    atomic_bool asleep;
    pthread_mutex_t lock; /* of the condition only */
    pthread_cond_t called;
} worker;

static struct pool {
    pthread_mutex_t turn; /* held through a region, and while workers are started */
    int n_workers;
    atomic_long spin_ns;
    worker workers[QL_MAX_THREADS]; /* [0] is the caller's place and unused */

    /* the region */
    ql_task task;
    void *context;
    int n_items;
    _Alignas(128) atomic_int next_item;

    /* the caller, when it waits for the last workers */
    _Alignas(128) atomic_bool caller_asleep;
    pthread_mutex_t lock;
    pthread_cond_t finished;
} pool;

static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static _Thread_local bool inside; /* this thread runs an item */

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Waits actively, for a short time, until *state is not value (or is, with equal). Returns whether
 * it came so. */
static bool spin(atomic_int *state, int value, bool equal) {
    int64_t end = 0;
    for (;;) {
        for (int i = 0; i < 64; i++) {
            if ((atomic_load(state) == value) == equal) return true;
            pause_cpu();
        }
        if (!end)
            end = now_ns() + atomic_load(&pool.spin_ns);
        else if (now_ns() >= end)
            return false;
    }
}

static void take_items(int thread) {
    const ql_task task = pool.task;
    void *const context = pool.context;
    const int n_items = pool.n_items;
    inside = true;
    for (int item; (item = atomic_fetch_add(&pool.next_item, 1)) < n_items;)
        task(context, item, thread);
    inside = false;
}

static void *work(void *argument) {
    worker *self = argument;
    for (;;) {
        if (!spin(&self->state, CALLED, true)) {
            pthread_mutex_lock(&self->lock);
            atomic_store(&self->asleep, true);
            if (atomic_load(&self->state) != CALLED) pthread_cond_wait(&self->called, &self->lock);
            atomic_store(&self->asleep, false);
            pthread_mutex_unlock(&self->lock);
            continue; /* too late for this call perhaps, but another region is likely to follow */
        }
        int state = CALLED;
        if (!atomic_compare_exchange_strong(&self->state, &state, RUNNING)) continue;
        take_items((int)(self - pool.workers));
        atomic_store(&self->state, IDLE);
        if (atomic_load(&pool.caller_asleep)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.finished);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

/* Everything as before the first worker: at the start, and in a child process, which has none of
 * its parent's threads. */
static void reset(void) {
    pthread_mutex_init(&pool.turn, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.finished, NULL);
    atomic_store(&pool.caller_asleep, false);
    pool.n_workers = 0;
    for (int i = 1; i < QL_MAX_THREADS; i++) {
        worker *w = &pool.workers[i];
        atomic_store(&w->state, IDLE);
        atomic_store(&w->asleep, false);
        pthread_mutex_init(&w->lock, NULL);
        pthread_cond_init(&w->called, NULL);
    }
}

static void prepare(void) {
    reset();
    pthread_atfork(NULL, NULL, reset);
}

static int count_cpus(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* Starts workers until there are n_workers; pool.turn is held. Returns pthread_create's error.
 * Signals to the process are for its own threads; those that a worker's own instruction raises are
 * not blocked, or the system ends the process: volume.c handles SIGBUS. */
static int start(int n_workers) {
    const int own[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&all, own[i]);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* a thread starts with its creator's mask */
    int error = 0;
    while (pool.n_workers < n_workers) {
        pthread_t thread;
        error = pthread_create(&thread, &attributes, work, &pool.workers[pool.n_workers + 1]);
        if (error) break;
        pool.n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

ql_status ql_threads_reserve(int n_threads, ql_error *err) {
    if (n_threads < 1 || n_threads > QL_MAX_THREADS)
        return ql_fail(err, QL_INVALID_VALUE, "the number of threads is 1 to %d, not %d",
                       QL_MAX_THREADS, n_threads);
    pthread_once(&prepared, prepare);
    pthread_mutex_lock(&pool.turn);
    int error = start(n_threads - 1), n_running = pool.n_workers + 1;
    pthread_mutex_unlock(&pool.turn);
    if (error)
        return ql_fail(err, QL_FAILED,
                       "the system refused to start thread %d of %d (%s); ask for fewer threads, "
                       "or raise the limit",
                       n_running + 1, n_threads, strerror(error));
    return QL_OK;
}

static void call(worker *w) {
    atomic_store(&w->state, CALLED);
    if (atomic_load(&w->asleep)) {
        pthread_mutex_lock(&w->lock);
        pthread_cond_signal(&w->called);
        pthread_mutex_unlock(&w->lock);
    }
}

/* Waits until the worker has left the region, or takes back its call. */
static void join(worker *w) {
    int state = CALLED;
    if (atomic_compare_exchange_strong(&w->state, &state, IDLE) || state == IDLE) return;
    if (spin(&w->state, IDLE, true)) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_asleep, true);
    while (atomic_load(&w->state) != IDLE) pthread_cond_wait(&pool.finished, &pool.lock);
    atomic_store(&pool.caller_asleep, false);
    pthread_mutex_unlock(&pool.lock);
}

void ql_parallel(int n_threads, int n_items, ql_task task, void *context) {
    if (n_threads > n_items) n_threads = n_items;
    if (n_threads <= 1 || inside) {
        for (int item = 0; item < n_items; item++) task(context, item, 0);
        return;
    }
    pthread_once(&prepared, prepare);
    pthread_mutex_lock(&pool.turn);
    if (pool.n_workers < n_threads - 1)
        start(n_threads - 1); /* after a fork; if it fails, those that run do all */
    int n_workers = pool.n_workers < n_threads - 1 ? pool.n_workers : n_threads - 1;
    static int n_cpus;
    if (!n_cpus) n_cpus = count_cpus();
    atomic_store(&pool.spin_ns, n_threads <= n_cpus ? 30000 : 2000);
    pool.task = task;
    pool.context = context;
    pool.n_items = n_items;
    atomic_store(&pool.next_item, 0);
    int n_called = 0;
    while (n_called < n_workers && atomic_load(&pool.next_item) < n_items) /* or one did all */
        call(&pool.workers[++n_called]);
    take_items(0);
    for (int i = 1; i <= n_called; i++) join(&pool.workers[i]);
    pthread_mutex_unlock(&pool.turn);
}
