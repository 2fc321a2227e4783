/* volume.h - a file mapped for reading, of which at most a budget stays in memory: the parts used
 * lately. Others are given back to the system, which reads them again when they are touched; that
 * changes no number, so it needs no agreement with who reads them. A file that is shortened or
 * cannot be read meanwhile does not end the process: the volume is marked as damaged, and zeros are
 * read. */
#ifndef QL_VOLUME_H
#define QL_VOLUME_H

#include <stdatomic.h>

#include "ql.h"

/* A part of a volume that is used and given back as a whole. */
typedef struct ql_extent ql_extent;
struct ql_extent {
    ql_volume *volume; /* kept alive */
    unsigned char *data;
    size_t bytes;
    atomic_bool warm;          /* used since the budget last looked at it */
    bool resident;             /* counts against the budget, and is in the ring of those that do */
    ql_extent *before, *after; /* in that ring */
};

/* To be called before a session reads volumes: whoever has set another handler for SIGBUS since
 * then gets what is not ours, but ours comes first. */
void ql_volume_guard(void);

/* NULL when the file ends before offset + bytes, or there is no memory. offset: a multiple of
 * QL_VOLUME_PAGE. */
ql_extent *ql_extent_new(ql_volume *volume, int64_t offset, size_t bytes, ql_error *err);
void ql_extent_free(ql_extent *extent); /* NULL is fine */

void ql_extent_warm(ql_extent *extent);
/* To be called before the data is read. */
static inline void ql_extent_touch(ql_extent *extent) {
    if (!atomic_load_explicit(&extent->warm, memory_order_relaxed)) ql_extent_warm(extent);
}

#endif
