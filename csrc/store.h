/* store.h - append-only storage in slabs of one size, shared between forks: a slab that is full
 * never changes again, so forks own it together; the one still being filled is copied. Slabs are
 * filled in memory; once full, one may be exchanged for its copy in a file. */
#ifndef QL_STORE_H
#define QL_STORE_H

#include "volume.h"

/* 64-byte aligned memory; NULL when there is none. Freed by free(). */
void *ql_alloc(size_t bytes);
/* To the system, if so much was freed: glibc keeps what comes in small parts, though a document was
 * closed to have its memory. */
void ql_give_back(size_t freed);

typedef struct ql_slab ql_slab;

typedef struct ql_store {
    ql_slab **slabs; /* [n]; NULL where dropped */
    int64_t n, capacity;
    size_t slab_bytes;
    /* Dropped ones, and those exchanged for their copies, for the next that are needed: a window's
     * pages go round. At most as many as the store has last grown by. */
    ql_slab *spare;
    int64_t n_spare, most_spare;
    int64_t n_mapped; /* of the n: those in files */
} ql_store;

/* Memory of slab i, 64-byte aligned. Of one in a file it can only be read. */
void *ql_store_at(const ql_store *store, int64_t i);
/* Adds slabs until there are n; what was there stays where it is. */
ql_status ql_store_reserve(ql_store *store, int64_t n, ql_error *err);
/* Makes *to (uninitialised) a store of the first n_used slabs, of which the first n_full are
 * shared, the rest copied. */
ql_status ql_store_fork(ql_store *to, const ql_store *from, int64_t n_full, int64_t n_used,
                        ql_error *err);
/* Adds one slab, a copy of data [slab_bytes]; NULL: one that was dropped. */
ql_status ql_store_add(ql_store *store, const void *data, ql_error *err);
/* Puts the part of a file at offset where slab i (full) is, or behind the last one. */
ql_status ql_store_map(ql_store *store, int64_t i, ql_volume *volume, int64_t offset,
                       ql_error *err);
bool ql_store_mapped(const ql_store *store, int64_t i);
void ql_store_drop(ql_store *store, int64_t end); /* gives up slabs before end */
size_t ql_store_clear(ql_store *store);           /* gives up all; bytes that nobody else has */
size_t ql_store_bytes(const ql_store *store);     /* without those in files */

#endif
