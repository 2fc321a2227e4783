#include "attention.h"

int64_t ql_visible_global(const ql_attention *a, int64_t p) {
    int64_t n = 0;
    for (int s = 0; s < a->n_global; s++) {
        const ql_span *span = &a->global[s];
        int64_t seen = a->masks_global ? p - a->reach - span->first + 1 : span->n;
        if (seen >= span->n) {
            n += span->n;
            continue;
        }
        return seen > 0 ? n + seen : n;
    }
    return n;
}

int64_t ql_count_keys(const ql_span *spans, int n) {
    int64_t keys = 0;
    for (int i = 0; i < n; i++) keys += spans[i].n;
    return keys;
}
