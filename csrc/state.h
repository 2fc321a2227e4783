/* state.h - a memory as what it consists of, and a memory made of that: slabs, counters and arrays
 * (ql.h says which). Knows no file and no format. */
#ifndef QL_STATE_H
#define QL_STATE_H

#include "memory.h"

void ql_state_slabs(ql_memory *memory, ql_part part, ql_slabs *slabs);
ql_status ql_state_copy_slab(ql_memory *memory, ql_part part, int64_t i, void *out, ql_error *err);
ql_status ql_state_map_slab(ql_memory *memory, ql_part part, int64_t i, ql_volume *volume,
                            int64_t offset, ql_error *err);

void ql_state_counters(const ql_memory *memory, int64_t counters[QL_N_COUNTERS]);
size_t ql_state_array_bytes(const ql_memory *memory, ql_array array);
/* out [ql_state_array_bytes] */
void ql_state_copy_array(const ql_memory *memory, ql_array array, void *out);

/* Of an empty memory; after an error it may hold anything. */
ql_status ql_state_restore(ql_memory *memory, const ql_saved *saved, ql_volume *volume,
                           ql_error *err);

#endif
