/* Slabs in a mapped file: the same bits, a budget that holds, faults that end no process. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "store.h"
#include "threads.h"
#include "tiny.h"

enum { PAGES = 4, BYTES = PAGES * QL_VOLUME_PAGE, SLABS = 64, BUDGET = 8 * BYTES };

/* A temporary file of slabs, slab i full of the byte i. */
static FILE *slab_file(int n) {
    static unsigned char slab[BYTES];
    FILE *file = tmpfile();
    for (int i = 0; i < n; i++) {
        memset(slab, i, sizeof slab);
        CHECK_EQUAL(fwrite(slab, 1, sizeof slab, file), BYTES);
    }
    fflush(file);
    return file;
}

/* Bytes of the process's mapped files that are in memory. */
static long file_bytes(void) {
    long pages = 0, shared = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK_EQUAL(fscanf(file, "%*d %ld %ld", &pages, &shared), 2);
    fclose(file);
    return shared * sysconf(_SC_PAGESIZE);
}

static bool slab_is(const ql_store *store, int64_t i, int byte) {
    const unsigned char *data = ql_store_at(store, i);
    for (int k = 0; k < BYTES; k++)
        if (data[k] != byte) return false;
    return true;
}

static void slabs_are_exchanged_for_their_copies(void) {
    ql_error err = {0};
    FILE *file = slab_file(SLABS);
    ql_volume *volume = ql_volume_open(fileno(file), BUDGET, &err);
    fclose(file); /* the volume has it open itself */
    ql_store store = {.slab_bytes = BYTES}, fork;
    CHECK_EQUAL(ql_store_reserve(&store, 4, &err), QL_OK);
    for (int i = 0; i < 4; i++) memset(ql_store_at(&store, i), i, BYTES);
    size_t before = ql_store_bytes(&store);
    CHECK_EQUAL(ql_store_fork(&fork, &store, 4, 4, &err), QL_OK);
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(ql_store_map(&store, i, volume, (int64_t)i * BYTES, &err), QL_OK);
    CHECK(ql_store_mapped(&store, 3) && !ql_store_mapped(&fork, 3));
    for (int i = 0; i < 4; i++) CHECK(slab_is(&store, i, i) && slab_is(&fork, i, i));
    CHECK_EQUAL(store.n_spare, 0); /* the fork has them still */
    CHECK(before - ql_store_bytes(&store) == 4 * BYTES);
    ql_store_clear(&fork);
    CHECK_EQUAL(ql_store_fork(&fork, &store, 4, 4, &err), QL_OK);
    CHECK_EQUAL(fork.n_mapped, 4);
    CHECK_EQUAL(ql_store_map(&store, 4, volume, (int64_t)9 * BYTES, &err), QL_OK); /* one more */
    CHECK(slab_is(&store, 4, 9));
    CHECK_EQUAL(ql_store_map(&store, 5, volume, (int64_t)SLABS * BYTES, &err), QL_DAMAGED);
    CHECK_CONTAINS(err.text, "shortened");
    CHECK_EQUAL(ql_store_map(&store, 5, volume, 100, &err), QL_DAMAGED);
    CHECK_EQUAL(store.n, 5);
    ql_volume_free(volume);
    ql_store_clear(&store);
    CHECK(slab_is(&fork, 2, 2)); /* keeps the mapping alive */
    ql_store_drop(&fork, 3);
    CHECK_EQUAL(fork.n_mapped, 1);
    CHECK_EQUAL(fork.n_spare, 0);
    ql_store_clear(&fork);
}

static void spares_are_few(void) { /* as many as the store grows by */
    ql_error err = {0};
    FILE *file = slab_file(SLABS);
    ql_volume *volume = ql_volume_open(fileno(file), BUDGET, &err);
    ql_store store = {.slab_bytes = BYTES};
    CHECK_EQUAL(ql_store_reserve(&store, 8, &err), QL_OK);
    CHECK_EQUAL(ql_store_map(&store, 0, volume, 0, &err), QL_OK);
    CHECK_EQUAL(store.n_spare, 0); /* it may never grow again */
    CHECK_EQUAL(ql_store_reserve(&store, 10, &err), QL_OK);
    for (int i = 1; i < 8; i++)
        CHECK_EQUAL(ql_store_map(&store, i, volume, (int64_t)i * BYTES, &err), QL_OK);
    CHECK_EQUAL(store.n_spare, 2);
    size_t before = ql_store_bytes(&store);
    CHECK_EQUAL(ql_store_reserve(&store, 12, &err), QL_OK);
    CHECK_EQUAL(store.n_spare, 0);
    CHECK_EQUAL(ql_store_bytes(&store), before);
    ql_store_clear(&store);
    ql_volume_free(volume);
}

static void the_budget_holds(void) {
    ql_error err = {0};
    FILE *file = slab_file(SLABS);
    ql_volume *volume = ql_volume_open(fileno(file), BUDGET, &err);
    ql_store store = {.slab_bytes = BYTES};
    for (int i = 0; i < SLABS; i++)
        CHECK_EQUAL(ql_store_map(&store, i, volume, (int64_t)i * BYTES, &err), QL_OK);
    CHECK_EQUAL(ql_volume_resident(volume), 0);
    long before = file_bytes(), most = 0;
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < SLABS; i++) {
            int at = round == 1 ? SLABS - 1 - i : i;
            CHECK(slab_is(&store, at, at));
            CHECK(slab_is(&store, 0, 0)); /* used all the time */
            CHECK(ql_volume_resident(volume) <= BUDGET);
            if (file_bytes() - before > most) most = file_bytes() - before;
        }
    CHECK(most <= BUDGET + (1 << 17)); /* and what a fault maps around the last ones */
    ql_volume_set_budget(volume, SIZE_MAX);
    for (int i = 0; i < SLABS; i++) CHECK(slab_is(&store, i, i));
    CHECK_EQUAL(ql_volume_resident(volume), (size_t)SLABS * BYTES);
    ql_volume_set_budget(volume, BUDGET); /* at once */
    CHECK(ql_volume_resident(volume) <= BUDGET && ql_volume_resident(volume) > BUDGET / 2);
    ql_volume_set_budget(volume, 0); /* one at a time */
    for (int i = 0; i < SLABS; i++) CHECK(slab_is(&store, i, i));
    CHECK(ql_volume_resident(volume) <= BYTES);
    ql_store_clear(&store);
    CHECK_EQUAL(ql_volume_resident(volume), 0);
    CHECK(!ql_volume_damaged(volume));
    ql_volume_free(volume);
    fclose(file);
}

/* A file that grows far beyond what was mapped first. */
static void a_file_may_grow(void) {
    ql_error err = {0};
    const int64_t far = (int64_t)700 << 20;
    FILE *file = slab_file(2);
    ql_volume *volume = ql_volume_open(fileno(file), BUDGET, &err);
    ql_store store = {.slab_bytes = BYTES};
    CHECK_EQUAL(ql_store_map(&store, 0, volume, 0, &err), QL_OK);
    CHECK_EQUAL(ql_store_map(&store, 1, volume, far, &err), QL_DAMAGED);
    static unsigned char slab[BYTES];
    memset(slab, 77, sizeof slab);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(pwrite(fileno(file), slab, sizeof slab, far * i + BYTES), BYTES);
        CHECK_EQUAL(ql_store_map(&store, 1 + i, volume, far * i + BYTES, &err), QL_OK);
    }
    for (int i = 1; i <= 3; i++) CHECK(slab_is(&store, i, 77));
    CHECK(slab_is(&store, 0, 0));
    ql_store_clear(&store);
    ql_volume_free(volume);
    fclose(file);
}

typedef struct reader {
    ql_store store; /* a fork */
    bool right;
} reader;

static void *read_all(void *context) {
    reader *r = context;
    r->right = true;
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < SLABS; i++) {
            int at = (i * 7 + round) % SLABS;
            r->right = r->right && slab_is(&r->store, at, at);
        }
    return NULL;
}

static void threads_share_a_volume(void) {
    ql_error err = {0};
    FILE *file = slab_file(SLABS);
    ql_volume *volume = ql_volume_open(fileno(file), 3 * BYTES, &err);
    ql_store store = {.slab_bytes = BYTES};
    for (int i = 0; i < SLABS; i++)
        CHECK_EQUAL(ql_store_map(&store, i, volume, (int64_t)i * BYTES, &err), QL_OK);
    reader readers[3];
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(ql_store_fork(&readers[i].store, &store, SLABS, SLABS, &err), QL_OK);
        pthread_create(&threads[i], NULL, read_all, &readers[i]);
    }
    ql_store_clear(&store);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        CHECK(readers[i].right);
        ql_store_clear(&readers[i].store);
    }
    ql_volume_free(volume);
    fclose(file);
}

static void a_shortened_file_is_noticed(void) {
    ql_error err = {0};
    FILE *file = slab_file(SLABS), *other = slab_file(SLABS);
    ql_volume *volume = ql_volume_open(fileno(file), SIZE_MAX, &err),
              *whole = ql_volume_open(fileno(other), SIZE_MAX, &err);
    ql_store store = {.slab_bytes = BYTES}, right = {.slab_bytes = BYTES};
    for (int i = 0; i < SLABS; i++) {
        CHECK_EQUAL(ql_store_map(&store, i, volume, (int64_t)i * BYTES, &err), QL_OK);
        CHECK_EQUAL(ql_store_map(&right, i, whole, (int64_t)i * BYTES, &err), QL_OK);
    }
    CHECK_EQUAL(ftruncate(fileno(file), 10 * BYTES + 100), 0);
    CHECK(slab_is(&store, 9, 9));
    CHECK(!slab_is(&store, 10, 10)); /* zeros in the page in which it ends, and no fault */
    CHECK(ql_volume_damaged(volume));
    for (int i = 11; i < SLABS; i++) CHECK(slab_is(&store, i, 0));
    for (int i = 0; i < SLABS; i++) CHECK(slab_is(&right, i, i));
    CHECK(!ql_volume_damaged(whole));
    ql_store_clear(&store);
    ql_store_clear(&right);
    ql_volume_free(volume);
    ql_volume_free(whole);
    fclose(file);
    fclose(other);
}

typedef struct reading {
    ql_store store;
    atomic_int by_workers, right;
} reading;

static void read_slab(void *context, int item, int thread) {
    reading *r = context;
    atomic_fetch_add(&r->by_workers, thread > 0);
    if (thread == 0)
        while (!atomic_load(&r->by_workers)) sched_yield(); /* a worker takes the next one */
    atomic_fetch_add(&r->right, slab_is(&r->store, item, 0));
}

/* Workers block the signals that are for others, but not this one. */
static void a_shortened_file_is_noticed_by_workers(void) {
    ql_error err = {0};
    FILE *file = slab_file(SLABS);
    ql_volume *volume = ql_volume_open(fileno(file), SIZE_MAX, &err);
    reading r = {.store = {.slab_bytes = BYTES}};
    for (int i = 0; i < SLABS; i++)
        CHECK_EQUAL(ql_store_map(&r.store, i, volume, (int64_t)i * BYTES, &err), QL_OK);
    CHECK_EQUAL(ql_threads_reserve(3, &err), QL_OK);
    CHECK_EQUAL(ftruncate(fileno(file), 0), 0);
    ql_parallel(3, SLABS, read_slab, &r);
    CHECK(atomic_load(&r.by_workers) > 0);
    CHECK_EQUAL(atomic_load(&r.right), SLABS);
    CHECK(ql_volume_damaged(volume));
    ql_store_clear(&r.store);
    ql_volume_free(volume);
    fclose(file);
}

static sigjmp_buf back;
static volatile sig_atomic_t caught;
static void catch(int number) {
    (void)number;
    caught++;
    siglongjmp(back, 1);
}

/* Faults that are not ours go to the handler that was there, whoever it is. In a process of its
 * own, since the last of them ends it. */
static int other_faults(void) {
    ql_error err = {0};
    FILE *file = slab_file(1);
    signal(SIGBUS, catch);
    ql_volume *volume = ql_volume_open(fileno(file), SIZE_MAX, &err);
    volatile unsigned char *own =
        mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fileno(file), 0); /* not through the volume */
    if (ftruncate(fileno(file), 0)) return 1;
    if (!sigsetjmp(back, 1)) (void)own[0];
    if (caught != 1 || ql_volume_damaged(volume)) return 2;
    ql_volume *again =
        ql_volume_open(fileno(file), SIZE_MAX, &err); /* ours stands in front again */
    if (!sigsetjmp(back, 1)) raise(SIGBUS);
    if (caught != 2) return 3;
    FILE *other =
        slab_file(1); /* a volume that is in use meanwhile is protected again, once it is */
    ql_store store = {.slab_bytes = BYTES};
    ql_volume *used = ql_volume_open(fileno(other), SIZE_MAX, &err);
    if (ql_store_map(&store, 0, used, 0, &err)) return 5;
    if (!sigsetjmp(back, 1)) raise(SIGBUS);
    if (caught != 3 || ftruncate(fileno(other), 0)) return 6;
    ql_volume_guard();
    if (sigsetjmp(back, 1)) return 7;
    if (!slab_is(&store, 0, 0) || !ql_volume_damaged(used) || caught != 3) return 8;
    ql_store_clear(&store);
    ql_volume_free(used);
    signal(SIGBUS, SIG_DFL);
    ql_volume *last = ql_volume_open(fileno(file), SIZE_MAX, &err);
    fflush(stdout);
    (void)own[0]; /* as if we were not there */
    ql_volume_free(last);
    ql_volume_free(again);
    return 4;
}

static void other_faults_are_left_alone(void) {
    fflush(stdout);
    pid_t child = fork();
    if (!child) _exit(other_faults());
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    if (WIFEXITED(status)) printf("    the child returned %d\n", WEXITSTATUS(status));
}

static void what_cannot_be_opened(void) {
    ql_error err = {0};
    CHECK(!ql_volume_open(-1, 0, &err));
    CHECK_EQUAL(err.code, QL_FAILED);
    int ends[2];
    CHECK_EQUAL(pipe(ends), 0);
    ql_volume *volume = ql_volume_open(ends[0], 0, &err);
    ql_store store = {.slab_bytes = BYTES};
    CHECK_EQUAL(ql_store_map(&store, 0, volume, 0, &err), QL_DAMAGED);
    ql_store_clear(&store);
    ql_volume_free(volume);
    ql_volume_free(NULL);
    close(ends[0]);
    close(ends[1]);
}

int main(void) {
    RUN(slabs_are_exchanged_for_their_copies);
    RUN(spares_are_few);
    RUN(the_budget_holds);
    RUN(a_file_may_grow);
    RUN(threads_share_a_volume);
    RUN(a_shortened_file_is_noticed);
    RUN(a_shortened_file_is_noticed_by_workers);
    RUN(other_faults_are_left_alone);
    RUN(what_cannot_be_opened);
    return check_report("test_volume");
}
