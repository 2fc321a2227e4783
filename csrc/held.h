/* held.h - from numbers as they are stored to weights as they are held. */
#ifndef QL_HELD_H
#define QL_HELD_H

#include "kernels.h"
#include "ql.h"

/* Bytes of a matrix that is held so. */
size_t ql_held_bytes(ql_dtype held, size_t n_rows, size_t n);

/* Writes rows [n_rows, n], stored as `from`, to `to`, 64-byte aligned, ql_held_bytes large. Fails
 * when there is no memory. */
ql_status ql_hold(void *to, ql_dtype held, const void *rows, ql_dtype from, size_t n_rows, size_t n,
                  const ql_kernels *kernels, int n_threads);

#endif
