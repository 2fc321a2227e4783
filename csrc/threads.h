/* threads.h - the process's one pool of threads. A region is n_items pieces of work, fixed by the
 * caller and independent of the number of threads (so results are too); threads take the next item
 * until none is left. One region runs at a time, since the pool holds the state of one: callers
 * from several threads take turns. */
#ifndef QL_THREADS_H
#define QL_THREADS_H

#include "ql.h"

typedef void (*ql_task)(void *context, int item,
                        int thread); /* 0 <= thread < n_threads: for scratch memory */

/* Starts workers until regions of n_threads threads can run. */
ql_status ql_threads_reserve(int n_threads, ql_error *err);

/* Runs task(context, 0 ... n_items-1, thread) on the caller and n_threads-1 workers; returns when
 * all are done. Within a task it runs all of them there, as thread 0 whatever the thread is: not
 * for tasks with scratch memory. */
void ql_parallel(int n_threads, int n_items, ql_task task, void *context);

#endif
