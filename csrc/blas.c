#include "blas.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "threads.h"

/* OpenBLAS as it comes on a system has no prefix; the one in scipy-openblas32 has "scipy_". */
#ifndef QL_BLAS_PREFIX
#define QL_BLAS_PREFIX
#endif
#define QL_JOIN_(prefix, name) prefix##name
#define QL_JOIN(prefix, name)  QL_JOIN_(prefix, name)
#define QL_BLAS(name)          QL_JOIN(QL_BLAS_PREFIX, name)

enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 }; /* of CBLAS_ORDER and CBLAS_TRANSPOSE */

void QL_BLAS(cblas_sgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k,
                          float alpha, const float *a, int lda, const float *b, int ldb, float beta,
                          float *c, int ldc);
void QL_BLAS(openblas_set_num_threads)(int n_threads);
char *QL_BLAS(openblas_get_config)(void);

/* OpenBLAS ends the process when more threads are inside than it has buffers. Regions of threads
 * take turns, but callers that compute without workers do not, so products are counted here. Forks
 * wait until nobody is inside: a child would inherit OpenBLAS's lock from a thread it has not. */
static atomic_int n_inside, n_forking;
static pthread_once_t prepared = PTHREAD_ONCE_INIT;

static void rest(void) { nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL); }

static void before_fork(void) {
    atomic_fetch_add(&n_forking, 1);
    while (atomic_load(&n_inside)) rest();
}

static void after_fork(void) { atomic_fetch_sub(&n_forking, 1); }

static void after_fork_in_child(void) {
    atomic_store(&n_inside, 0);
    atomic_store(&n_forking, 0);
}

static void prepare(void) {
    QL_BLAS(openblas_set_num_threads)(1);
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void ql_blas_single_threaded(void) { pthread_once(&prepared, prepare); }

const char *ql_blas_name(void) { return QL_BLAS(openblas_get_config)(); }

static void enter(void) {
    while (atomic_fetch_add(&n_inside, 1) >= QL_MAX_THREADS || atomic_load(&n_forking)) {
        atomic_fetch_sub(&n_inside, 1);
        rest();
    }
}

static void leave(void) { atomic_fetch_sub(&n_inside, 1); }

void ql_sgemm_nt(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb,
                 int m, int n, int k, bool accumulate) {
    enter();
    QL_BLAS(cblas_sgemm)
    (ROW_MAJOR, PLAIN, TRANSPOSED, m, n, k, 1.0f, a, (int)lda, b, (int)ldb,
     accumulate ? 1.0f : 0.0f, c, (int)ldc);
    leave();
}
