/* The pool of threads: every item once, on a valid thread, with its results visible; many regions,
 * several callers at once, more threads than cores, and a process that forks. */
#define _GNU_SOURCE /* pthread_setattr_default_np */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "threads.h"

#if defined(__SANITIZE_THREAD__)
enum { UNDER_TSAN = 1 }; /* which ends processes that fork with threads and then start new ones */
#else
enum { UNDER_TSAN = 0 };
#endif

enum { MOST_ITEMS = 1000, CALLERS = 6 };

typedef struct record {
    int n_threads;
    int count[MOST_ITEMS];
    long in_use[QL_MAX_THREADS]; /* not atomic: one thread at a time has a number */
    atomic_int bad;
} record;

static void note(void *context, int item, int thread) {
    record *r = context;
    if (thread < 0 || thread >= r->n_threads)
        atomic_fetch_add(&r->bad, 1);
    else
        r->in_use[thread]++;
    r->count[item]++;
}

/* One region; returns whether every item ran once, on a thread with a right number. */
static bool region(int n_threads, int n_items) {
    static _Thread_local record r;
    memset(r.count, 0, sizeof r.count);
    memset(r.in_use, 0, sizeof r.in_use);
    r.n_threads = n_threads;
    ql_parallel(n_threads, n_items, note, &r);
    long total = 0;
    for (int t = 0; t < QL_MAX_THREADS; t++) total += r.in_use[t];
    bool good = atomic_load(&r.bad) == 0 && total == n_items;
    for (int i = 0; i < MOST_ITEMS; i++) good = good && r.count[i] == (i < n_items);
    return good;
}

static bool regions(int n_threads, int n) {
    bool good = true;
    for (int i = 0; i < n; i++) good = good && region(n_threads, i % 50 ? i % 17 : MOST_ITEMS);
    return good;
}

static void each_item_once(void) {
    ql_error err = {0};
    const int threads[] = {1, 2, 3, 5, 8};
    for (int c = 0; c < 5; c++) {
        CHECK_EQUAL(ql_threads_reserve(threads[c], &err), QL_OK);
        CHECK(regions(threads[c], 3000));
    }
}

static void limits(void) {
    ql_error err = {0};
    CHECK_EQUAL(ql_threads_reserve(0, &err), QL_INVALID_VALUE);
    CHECK_EQUAL(ql_threads_reserve(QL_MAX_THREADS + 1, &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "1 to 64");
    CHECK_EQUAL(ql_threads_reserve(QL_MAX_THREADS, NULL), QL_OK);
    CHECK(regions(QL_MAX_THREADS, 300));
}

typedef struct call {
    int n_threads;
    bool good;
} call;

static void *caller(void *argument) {
    call *c = argument;
    c->good = regions(c->n_threads, 1000);
    return NULL;
}

static void several_callers(void) {
    pthread_t threads[CALLERS];
    call calls[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        calls[i] = (call){.n_threads = 1 + i % 4};
        CHECK_EQUAL(pthread_create(&threads[i], NULL, caller, &calls[i]), 0);
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(calls[i].good);
    }
}

static void
after_sleep(void) { /* workers that went to sleep come back, and so does a caller that did */
    for (int i = 0; i < 20; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        CHECK(region(3, 10 + i));
    }
}

static void uneven(void *context, int item, int thread) {
    (void)thread;
    if (item == 0) nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
    ((int *)context)[item] = item + 1;
}

static void waits_for_the_last(void) {
    for (int round = 0; round < 20; round++) {
        int done[4] = {0};
        ql_parallel(2, 4, uneven, done);
        CHECK(done[0] == 1 && done[1] == 2 && done[2] == 3 && done[3] == 4);
    }
}

static void nested_task(void *context, int item, int thread) {
    (void)thread;
    int *counts = context;
    int inner[8] = {0};
    ql_parallel(3, 8, uneven, inner);
    for (int i = 0; i < 8; i++) counts[item] += inner[i];
}

static void nested(void) { /* runs where it is called */
    int counts[5] = {0};
    ql_parallel(3, 5, nested_task, counts);
    for (int i = 0; i < 5; i++) CHECK_EQUAL(counts[i], 36);
}

/* The exit status of a child that runs regions; -1 when it did not end by itself within 20 seconds.
 */
static int run_child(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        _exit(regions(3, 500) && ql_threads_reserve(5, NULL) == QL_OK && regions(5, 200) ? 0 : 1);
    }
    int status = -1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void deep(void *context, int item, int thread) {
    (void)item;
    (void)thread;
    volatile char room[300 << 10];
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);        /* workers come */
    for (size_t i = sizeof room; i > 0; i -= 512) room[i - 1] = 1; /* as a stack grows */
    atomic_fetch_add((atomic_int *)context, room[511]);
}

/* Workers have room for what tasks take, however little the system gives. */
static void room_on_the_stack(void) {
#ifdef __GLIBC__
    if (UNDER_TSAN) return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 256 << 10);
        if (pthread_setattr_default_np(&small) || ql_threads_reserve(3, NULL)) _exit(2);
        atomic_int n = 0;
        for (int i = 0; i < 50; i++) ql_parallel(3, 30, deep, &n);
        _exit(atomic_load(&n) == 1500 ? 0 : 1);
    }
    int status = -1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
}

static atomic_bool stop;

static void *busy_caller(void *argument) {
    (void)argument;
    while (!atomic_load(&stop))
        if (!region(3, 20)) return &stop;
    return NULL;
}

static void forks(void) {
    if (UNDER_TSAN) return;
    atomic_store(&stop, false);
    CHECK_EQUAL(run_child(), 0);
    CHECK(regions(3, 200)); /* the parent goes on */
    pthread_t thread;       /* and with a region under way in another thread */
    CHECK_EQUAL(pthread_create(&thread, NULL, busy_caller, NULL), 0);
    for (int i = 0; i < 20; i++) CHECK_EQUAL(run_child(), 0);
    atomic_store(&stop, true);
    void *result = &stop;
    pthread_join(thread, &result);
    CHECK(result == NULL);
}

static atomic_int wrong_thread;
static pthread_t main_thread;

static void on_signal(int number) {
    (void)number;
    if (!pthread_equal(pthread_self(), main_thread)) atomic_fetch_add(&wrong_thread, 1);
}

static void signals_stay_outside(void) { /* a signal to the process never interrupts a worker */
    main_thread = pthread_self();
    signal(SIGUSR1, on_signal);
    for (int i = 0; i < 200; i++) {
        kill(getpid(), SIGUSR1);
        region(4, 30);
    }
    CHECK_EQUAL(atomic_load(&wrong_thread), 0);
    signal(SIGUSR1, SIG_DFL);
}

int main(void) {
    RUN(room_on_the_stack); /* first: stacks of threads that were are used again */
    RUN(each_item_once);
    RUN(several_callers);
    RUN(after_sleep);
    RUN(waits_for_the_last);
    RUN(nested);
    RUN(signals_stay_outside);
    RUN(forks);
    RUN(limits);
    RUN(several_callers);
    RUN(forks);
    return check_report("test_threads");
}
