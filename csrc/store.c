#include "store.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "error.h"

enum { ALIGNMENT = 64, WORTH_GIVING_BACK = 64 << 20 };

/* Apart from its data, so that many of these lie together: each layer asks for all that it attends
 * to, and data go by in between. */
struct ql_slab {
    atomic_int owners;
    ql_slab *next;       /* of the spare ones */
    unsigned char *data; /* its own, or of the extent */
    ql_extent *extent;   /* where a slab lies that is kept in a file; NULL: it is in memory */
};

void *ql_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - ALIGNMENT) return NULL;
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return aligned_alloc(ALIGNMENT, rounded ? rounded : ALIGNMENT);
}

/* With bytes of its own; 0: those of an extent are to come. */
static ql_slab *slab_new(size_t bytes) {
    ql_slab *slab = malloc(sizeof *slab);
    if (!slab) return NULL;
    *slab = (ql_slab){.data = bytes ? ql_alloc(bytes) : NULL};
    atomic_init(&slab->owners, 1);
    if (slab->data || !bytes) return slab;
    free(slab);
    return NULL;
}

static void slab_free(ql_slab *slab) {
    if (slab->extent)
        ql_extent_free(slab->extent);
    else
        free(slab->data);
    free(slab);
}

/* Gives up a slab (or NULL). True: nobody owns it any more, and it is the caller's to free. */
static bool slab_release(ql_slab *slab) {
    return slab && atomic_fetch_sub_explicit(&slab->owners, 1, memory_order_acq_rel) == 1;
}

/* Takes a slab that nobody owns any more. */
static void retire(ql_store *store, ql_slab *slab) {
    if (slab->extent || store->n_spare >= store->most_spare) {
        slab_free(slab);
        return;
    }
    slab->next = store->spare;
    store->spare = slab;
    store->n_spare++;
}

/* A spare slab, or a new one, filled with zeros: it is saved whole, and what was in memory before
 * is nobody's business. NULL when there is no memory. */
static ql_slab *slab_of(ql_store *store) {
    ql_slab *slab = store->spare;
    if (slab) {
        store->spare = slab->next;
        store->n_spare--;
        atomic_init(&slab->owners, 1);
    } else {
        slab = slab_new(store->slab_bytes);
    }
    if (slab) memset(slab->data, 0, store->slab_bytes);
    return slab;
}

void *ql_store_at(const ql_store *store, int64_t i) {
    ql_slab *slab = store->slabs[i];
    if (slab->extent) ql_extent_touch(slab->extent);
    return slab->data;
}

static ql_status grow_table(ql_store *store, int64_t n, ql_error *err) {
    if (n <= store->capacity) return QL_OK;
    int64_t capacity = n > 2 * store->capacity ? n : 2 * store->capacity;
    ql_slab **slabs = realloc(store->slabs, (size_t)capacity * sizeof *slabs);
    if (!slabs)
        return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a table of %lld pages",
                       (long long)capacity);
    store->slabs = slabs;
    store->capacity = capacity;
    return QL_OK;
}

ql_status ql_store_reserve(ql_store *store, int64_t n, ql_error *err) {
    ql_status status = grow_table(store, n, err);
    if (status) return status;
    if (n > store->n && store->n > 0) store->most_spare = n - store->n;
    while (store->n < n) {
        ql_slab *slab = slab_of(store);
        if (!slab)
            return ql_fail(err, QL_OUT_OF_MEMORY,
                           "no memory for a page of %zu bytes after %lld such pages",
                           store->slab_bytes, (long long)store->n);
        store->slabs[store->n++] = slab;
    }
    return QL_OK;
}

ql_status ql_store_fork(ql_store *to, const ql_store *from, int64_t n_full, int64_t n_used,
                        ql_error *err) {
    *to = (ql_store){.slab_bytes = from->slab_bytes};
    ql_status status = grow_table(to, n_used, err);
    if (status) return status;
    for (int64_t i = 0; i < n_used; i++) {
        ql_slab *slab = from->slabs[i];
        if (i < n_full || !slab) {
            if (slab) atomic_fetch_add_explicit(&slab->owners, 1, memory_order_relaxed);
            if (slab && slab->extent) to->n_mapped++;
        } else {
            slab = slab_new(from->slab_bytes);
            if (!slab) {
                ql_store_clear(to);
                return ql_fail(err, QL_OUT_OF_MEMORY, "no memory to copy a page of %zu bytes",
                               from->slab_bytes);
            }
            memcpy(slab->data, ql_store_at(from, i), from->slab_bytes);
        }
        to->slabs[to->n++] = slab;
    }
    return QL_OK;
}

ql_status ql_store_add(ql_store *store, const void *data, ql_error *err) {
    ql_status status = grow_table(store, store->n + 1, err);
    if (status) return status;
    if (!data) {
        store->slabs[store->n++] = NULL;
        return QL_OK;
    }
    status = ql_store_reserve(store, store->n + 1, err);
    if (!status) memcpy(store->slabs[store->n - 1]->data, data, store->slab_bytes);
    return status;
}

ql_status ql_store_map(ql_store *store, int64_t i, ql_volume *volume, int64_t offset,
                       ql_error *err) {
    ql_status status = grow_table(store, i + 1, err);
    if (status) return status;
    ql_slab *slab = slab_new(0);
    if (!slab) return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a page of a file");
    slab->extent = ql_extent_new(volume, offset, store->slab_bytes, err);
    if (!slab->extent) {
        free(slab);
        return err ? err->code : QL_FAILED;
    }
    slab->data = slab->extent->data;
    if (i == store->n)
        store->n++;
    else if (slab_release(store->slabs[i]))
        retire(store, store->slabs[i]);
    store->slabs[i] = slab;
    store->n_mapped++;
    return QL_OK;
}

bool ql_store_mapped(const ql_store *store, int64_t i) {
    return store->slabs[i] && store->slabs[i]->extent;
}

void ql_store_drop(ql_store *store, int64_t end) {
    /* Dropping happens from the front on, so the first hole from the back ends the search. */
    for (int64_t i = (end < store->n ? end : store->n) - 1; i >= 0 && store->slabs[i]; i--) {
        ql_slab *slab = store->slabs[i];
        store->slabs[i] = NULL;
        if (slab->extent) store->n_mapped--;
        if (slab_release(slab)) retire(store, slab);
    }
}

void ql_give_back(size_t freed) {
#ifdef __GLIBC__
    if (freed >= WORTH_GIVING_BACK) malloc_trim(0);
#else
    (void)freed;
#endif
}

size_t ql_store_clear(ql_store *store) {
    size_t freed = 0;
    for (int64_t i = 0; i < store->n; i++) {
        ql_slab *slab = store->slabs[i];
        if (!slab_release(slab)) continue;
        if (!slab->extent) freed += store->slab_bytes;
        slab_free(slab);
    }
    while (store->spare) {
        ql_slab *slab = store->spare;
        store->spare = slab->next;
        slab_free(slab);
    }
    free(store->slabs);
    *store = (ql_store){.slab_bytes = store->slab_bytes};
    return freed;
}

size_t ql_store_bytes(const ql_store *store) {
    size_t held = (size_t)store->n_spare * store->slab_bytes;
    for (int64_t i = 0; i < store->n; i++) held += store->slabs[i] ? store->slab_bytes : 0;
    held -= (size_t)store->n_mapped * store->slab_bytes;
    return held + (size_t)store->capacity * sizeof *store->slabs;
}
