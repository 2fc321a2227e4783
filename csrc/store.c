#include "store.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

enum { ALIGNMENT = 64 };

struct ql_slab {
    _Alignas(ALIGNMENT) atomic_int owners;
    ql_slab *next; /* of the spare ones */
    _Alignas(ALIGNMENT) unsigned char data[];
};

void *ql_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - ALIGNMENT) return NULL;
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return aligned_alloc(ALIGNMENT, rounded ? rounded : ALIGNMENT);
}

static ql_slab *slab_new(size_t bytes) {
    ql_slab *slab = ql_alloc(sizeof *slab + bytes);
    if (slab) atomic_init(&slab->owners, 1);
    return slab;
}

/* Gives up a slab (or NULL). True: nobody owns it any more, and it is the caller's to free. */
static bool slab_release(ql_slab *slab) {
    return slab && atomic_fetch_sub_explicit(&slab->owners, 1, memory_order_acq_rel) == 1;
}

/* One of the spare slabs, or a new one; NULL when there is no memory. */
static ql_slab *slab_of(ql_store *store) {
    ql_slab *slab = store->spare;
    if (!slab) return slab_new(store->slab_bytes);
    store->spare = slab->next;
    store->n_spare--;
    atomic_init(&slab->owners, 1);
    return slab;
}

void *ql_store_at(const ql_store *store, int64_t i) { return store->slabs[i]->data; }

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
        } else {
            slab = slab_new(from->slab_bytes);
            if (!slab) {
                ql_store_clear(to);
                return ql_fail(err, QL_OUT_OF_MEMORY, "no memory to copy a page of %zu bytes",
                               from->slab_bytes);
            }
            memcpy(slab->data, from->slabs[i]->data, from->slab_bytes);
        }
        to->slabs[to->n++] = slab;
    }
    return QL_OK;
}

void ql_store_drop(ql_store *store, int64_t end) {
    /* Dropping happens from the front on, so the first hole from the back ends the search. */
    for (int64_t i = (end < store->n ? end : store->n) - 1; i >= 0 && store->slabs[i]; i--) {
        ql_slab *slab = store->slabs[i];
        store->slabs[i] = NULL;
        if (!slab_release(slab)) continue;
        slab->next = store->spare;
        store->spare = slab;
        store->n_spare++;
    }
}

void ql_store_clear(ql_store *store) {
    for (int64_t i = 0; i < store->n; i++)
        if (slab_release(store->slabs[i])) free(store->slabs[i]);
    while (store->spare) {
        ql_slab *slab = store->spare;
        store->spare = slab->next;
        free(slab);
    }
    free(store->slabs);
    *store = (ql_store){.slab_bytes = store->slab_bytes};
}

size_t ql_store_bytes(const ql_store *store) {
    size_t held = (size_t)store->n_spare * store->slab_bytes;
    for (int64_t i = 0; i < store->n; i++) held += store->slabs[i] ? store->slab_bytes : 0;
    return held + (size_t)store->capacity * sizeof *store->slabs;
}
