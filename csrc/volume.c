#include "volume.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

/* The file is mapped in regions, each with room to grow: a mapping may end behind the file. */
static const int64_t REGION = (int64_t)1 << 28;
/* A fault also maps neighbouring pages that are in the system's cache, so many bytes, aligned:
 * given back with the extent, or those beyond its edges would stay for ever. Also the largest page
 * of a system. */
enum { FAULT_AROUND = 1 << 16 };

/* Read by the signal handler: regions are never freed, but used again (begin 0: free). */
typedef struct region region;
struct region {
    atomic_uintptr_t begin, end;
    _Atomic(ql_volume *) volume;
    int64_t offset;    /* in the file */
    region *of_volume; /* the next one of the same volume */
    region *next;
};

struct ql_volume {
    atomic_int owners;
    int fd;
    atomic_size_t budget;
    atomic_size_t resident;  /* bytes of the extents in the ring */
    ql_extent *hand;         /* the ring's next candidate to be given back */
    region *regions;         /* the last one first */
    _Atomic(int64_t) needed; /* bytes of the file, by its extents */
    atomic_bool damaged;
};

/* One lock for all volumes, held while a process forks, so that a child finds the rings whole. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static _Atomic(region *) all_regions;

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void in_parent(void) { pthread_mutex_unlock(&lock); }
static void in_child(void) { pthread_mutex_init(&lock, NULL); }
static void prepare(void) { pthread_atfork(before_fork, in_parent, in_child); }

/* ---- faults ---- */

static uintptr_t page_bytes;     /* of the system */
static struct sigaction earlier; /* the handler that was there before ours */
static atomic_bool handed_back;  /* to it */

/* The region that holds an address, or NULL. */
static region *region_of(uintptr_t address) {
    for (region *r = atomic_load(&all_regions); r; r = r->next)
        if (address >= atomic_load(&r->begin) && address < atomic_load(&r->end)) return r;
    return NULL;
}

/* A page of a mapped file that is not there any more. In one of our regions zeros take the place of
 * everything from there on, and the volume says so to whoever ends a call. Elsewhere the handler
 * before ours gets the fault: it happens again as soon as this one returns. */
static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)context;
    uintptr_t page = (uintptr_t)info->si_addr / page_bytes * page_bytes;
    region *r = info->si_code > 0 ? region_of((uintptr_t)info->si_addr) : NULL;
    if (r) {
        atomic_store(&atomic_load(&r->volume)->damaged, true);
        void *zeros = mmap((void *)page, atomic_load(&r->end) - page, PROT_READ,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (zeros != MAP_FAILED) return;
    }
    /* If it comes back here, no handler is left that knows it. */
    struct sigaction last = {.sa_handler = SIG_DFL};
    sigaction(number, atomic_exchange(&handed_back, true) ? &last : &earlier, NULL);
    if (info->si_code <= 0) raise(number); /* sent by somebody, so it does not happen again */
}

/* Anew with every call that reads volumes: somebody may have set another handler meanwhile, as ours
 * does when it hands a fault on. */
static bool install_handler(void) {
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    struct sigaction now,
        ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (sigaction(SIGBUS, NULL, &now)) return false;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error) return true;
    earlier = now;
    atomic_store(&handed_back, false);
    return sigaction(SIGBUS, &ours, NULL) == 0;
}

void ql_volume_guard(void) {
    pthread_mutex_lock(&lock);
    install_handler();
    pthread_mutex_unlock(&lock);
}

/* ---- a volume ---- */

ql_volume *ql_volume_open(int fd, size_t budget, ql_error *err) {
    pthread_once(&prepared, prepare);
    ql_volume *volume = calloc(1, sizeof *volume);
    if (!volume) {
        ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a volume");
        return NULL;
    }
    atomic_init(&volume->owners, 1);
    atomic_init(&volume->budget, budget);
    volume->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    pthread_mutex_lock(&lock);
    bool installed = volume->fd >= 0 && install_handler();
    pthread_mutex_unlock(&lock);
    if (installed) return volume;
    ql_fail(err, QL_FAILED, "file descriptor %d cannot be used for a volume", fd);
    ql_volume_free(volume);
    return NULL;
}

void ql_volume_retain(ql_volume *volume) {
    atomic_fetch_add_explicit(&volume->owners, 1, memory_order_relaxed);
}

void ql_volume_free(ql_volume *volume) {
    if (!volume || atomic_fetch_sub_explicit(&volume->owners, 1, memory_order_acq_rel) != 1) return;
    for (region *r = volume->regions; r;) {
        region *following = r->of_volume;
        uintptr_t begin = atomic_load(&r->begin), end = atomic_load(&r->end);
        atomic_store(&r->end, 0); /* first: the addresses may be somebody else's in a moment */
        munmap((void *)begin, end - begin);
        pthread_mutex_lock(&lock);
        atomic_store(&r->begin, 0);
        pthread_mutex_unlock(&lock);
        r = following;
    }
    if (volume->fd >= 0) close(volume->fd);
    free(volume);
}

size_t ql_volume_resident(const ql_volume *volume) {
    return atomic_load_explicit(&volume->resident, memory_order_relaxed);
}

/* Also a file that ends within a page is too short: the rest of the page is zeros, and no fault. */
bool ql_volume_damaged(ql_volume *volume) {
    struct stat file;
    if (fstat(volume->fd, &file) || file.st_size < atomic_load(&volume->needed))
        atomic_store(&volume->damaged, true);
    return atomic_load(&volume->damaged);
}

/* ---- regions ---- */

/* A region that nobody uses, or a new one. */
static region *free_region(void) {
    region *r = atomic_load(&all_regions);
    while (r && atomic_load(&r->begin)) r = r->next;
    if (r) return r;
    r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->next = atomic_load(&all_regions);
    atomic_store(&all_regions, r);
    return r;
}

static region *map_region(ql_volume *volume, int64_t offset, int64_t bytes) {
    region *r = free_region();
    if (!r) return NULL;
    void *begin = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, volume->fd, offset);
    if (begin == MAP_FAILED) return NULL;
    r->offset = offset;
    r->of_volume = volume->regions;
    volume->regions = r;
    atomic_store(&r->volume, volume);
    atomic_store(&r->begin, (uintptr_t)begin);
    atomic_store(&r->end, (uintptr_t)begin + (size_t)bytes);
    return r;
}

/* Where offset ... offset + bytes of the file is mapped; NULL when there is no memory. */
static unsigned char *map(ql_volume *volume, int64_t offset, int64_t bytes, int64_t file_bytes) {
    for (region *r = volume->regions; r; r = r->of_volume) {
        uintptr_t begin = atomic_load(&r->begin);
        int64_t size = (int64_t)(atomic_load(&r->end) - begin);
        if (offset >= r->offset && offset + bytes <= r->offset + size)
            return (unsigned char *)begin + (offset - r->offset);
    }
    /* The first region is all of an old file. */
    int64_t first = volume->regions ? offset - offset % FAULT_AROUND : 0;
    int64_t size =
        file_bytes - first > offset - first + REGION ? file_bytes - first : offset - first + REGION;
    if (size < offset - first + bytes) size = offset - first + bytes;
    region *r = map_region(volume, first, size);
    return r ? (unsigned char *)atomic_load(&r->begin) + (offset - first) : NULL;
}

/* ---- extents ---- */

ql_extent *ql_extent_new(ql_volume *volume, int64_t offset, size_t bytes, ql_error *err) {
    struct stat file;
    if (fstat(volume->fd, &file)) {
        ql_fail(err, QL_FAILED, "the file of a volume cannot be examined");
        return NULL;
    }
    if (offset < 0 || offset % QL_VOLUME_PAGE || bytes > (size_t)INT64_MAX ||
        offset > file.st_size || (int64_t)bytes > file.st_size - offset) {
        ql_fail(err, QL_DAMAGED,
                "a part of %zu bytes at %lld is expected in a file that has %lld bytes: it was "
                "shortened",
                bytes, (long long)offset, (long long)file.st_size);
        return NULL;
    }
    ql_extent *extent = calloc(1, sizeof *extent);
    if (extent) {
        pthread_mutex_lock(&lock);
        extent->data = map(volume, offset, (int64_t)bytes, file.st_size);
        pthread_mutex_unlock(&lock);
    }
    if (!extent || !extent->data) {
        free(extent);
        ql_fail(err, QL_OUT_OF_MEMORY, "no address space to map %zu bytes of a file", bytes);
        return NULL;
    }
    extent->bytes = bytes;
    extent->volume = volume;
    ql_volume_retain(volume);
    int64_t end = offset + (int64_t)bytes, needed = atomic_load(&volume->needed);
    while (end > needed)
        if (atomic_compare_exchange_weak(&volume->needed, &needed, end)) break;
    return extent;
}

/* ---- the budget: second chances, in a ring. Under the lock. ---- */

static void enter(ql_extent *extent) {
    ql_volume *volume = extent->volume;
    ql_extent *hand = volume->hand;
    extent->after = hand ? hand : extent;
    extent->before = hand ? hand->before : extent;
    extent->before->after = extent->after->before = extent;
    if (!hand) volume->hand = extent;
    extent->resident = true;
    atomic_fetch_add_explicit(&volume->resident, extent->bytes, memory_order_relaxed);
}

static void leave(ql_extent *extent) {
    ql_volume *volume = extent->volume;
    if (volume->hand == extent) volume->hand = extent->after == extent ? NULL : extent->after;
    extent->before->after = extent->after;
    extent->after->before = extent->before;
    extent->resident = false;
    atomic_store_explicit(&extent->warm, false, memory_order_relaxed);
    atomic_fetch_sub_explicit(&volume->resident, extent->bytes, memory_order_relaxed);
}

/* Whether the pages are in memory is the system's affair: this is advice, and cannot fail us. */
static void give_back(const ql_extent *extent) {
    uintptr_t begin = (uintptr_t)extent->data, end = begin + extent->bytes;
    for (region *r = extent->volume->regions; r; r = r->of_volume) {
        uintptr_t first = atomic_load(&r->begin), last = atomic_load(&r->end);
        if (begin < first || end > last) continue;
        begin -= begin % FAULT_AROUND;
        end += (FAULT_AROUND - end % FAULT_AROUND) % FAULT_AROUND;
        if (begin < first) begin = first;
        if (end > last) end = last;
        madvise((void *)begin, end - begin, MADV_DONTNEED);
        return;
    }
}

/* Gives back what exceeds the budget, though not one extent; NULL: any. */
static void shrink(ql_volume *volume, const ql_extent *spared) {
    while (volume->hand && atomic_load(&volume->resident) > atomic_load(&volume->budget)) {
        ql_extent *candidate = volume->hand;
        if (candidate == spared && candidate->after == spared) return;
        volume->hand = candidate->after;
        if (candidate == spared) continue;
        if (atomic_exchange_explicit(&candidate->warm, false, memory_order_relaxed)) continue;
        leave(candidate);
        give_back(candidate);
    }
}

void ql_extent_warm(ql_extent *extent) {
    pthread_mutex_lock(&lock);
    atomic_store_explicit(&extent->warm, true, memory_order_relaxed);
    if (!extent->resident) enter(extent);
    shrink(extent->volume, extent);
    pthread_mutex_unlock(&lock);
}

void ql_volume_set_budget(ql_volume *volume, size_t budget) {
    pthread_mutex_lock(&lock);
    atomic_store(&volume->budget, budget);
    shrink(volume, NULL);
    pthread_mutex_unlock(&lock);
}

void ql_extent_free(ql_extent *extent) {
    if (!extent) return;
    pthread_mutex_lock(&lock);
    if (extent->resident) {
        leave(extent);
        give_back(extent);
    }
    pthread_mutex_unlock(&lock);
    ql_volume_free(extent->volume);
    free(extent);
}
