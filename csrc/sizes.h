/* sizes.h - the arithmetic of sizes. */
#ifndef QL_SIZES_H
#define QL_SIZES_H

#include <stddef.h>
#include <stdint.h>

static inline int64_t ql_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ql_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline size_t ql_larger(size_t a, size_t b) { return a > b ? a : b; }
/* Bytes rounded up to whole cache lines. */
static inline size_t ql_aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

#endif
