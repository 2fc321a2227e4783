#include "state.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

/* ---- slabs ---- */

static ql_store *store_of(ql_memory *m, ql_part part) {
    ql_store *stores[] = {&m->kv.first, &m->kv.pages, &m->index.slabs, &m->keys.slabs};
    return stores[part];
}

/* Slabs of a part that are in use, and those of them that are full. Where pages are forgotten, they
 * are used again: none is ever full for good. */
static void count(const ql_memory *m, ql_part part, int64_t *n, int64_t *n_full) {
    int64_t tokens = m->n_tokens;
    *n = *n_full = 0;
    if (part == QL_FIRST && m->kv.n_first > 0 && tokens > 0) {
        *n = 1;
        *n_full = tokens >= m->kv.n_first;
    } else if (part == QL_PAGES) {
        *n = ql_kv_pages(&m->kv, tokens);
        *n_full = ql_memory_sinks_only(m) ? 0 : ql_kv_full_pages(&m->kv, tokens);
    } else if (part == QL_VECTORS && ql_memory_has_blocks(m)) {
        *n = ql_index_slabs(m->n_blocks);
        *n_full = ql_index_full_slabs(m->n_blocks);
    } else if (part == QL_KEYS && ql_memory_skims(m)) {
        *n = ql_keys_slabs(tokens);
        *n_full = ql_keys_full_slabs(tokens);
    }
}

/* Tokens that a slab is for, where more come with every token read. */
static int64_t tokens_of(const ql_memory *m, ql_part part) {
    if (part == QL_PAGES && !ql_memory_sinks_only(m)) return m->kv.page_tokens;
    if (part == QL_VECTORS && ql_memory_has_blocks(m))
        return (int64_t)QL_INDEX_BLOCKS * m->config.block_size;
    return part == QL_KEYS && ql_memory_skims(m) ? QL_KEYS_TOKENS : 0;
}

void ql_state_slabs(ql_memory *m, ql_part part, ql_slabs *slabs) {
    const ql_store *store = store_of(m, part);
    *slabs = (ql_slabs){.bytes = store->slab_bytes, .tokens = tokens_of(m, part)};
    count(m, part, &slabs->n, &slabs->n_full);
    while (slabs->n_dropped < slabs->n && !store->slabs[slabs->n_dropped]) slabs->n_dropped++;
}

ql_status ql_state_copy_slab(ql_memory *m, ql_part part, int64_t i, void *out, ql_error *err) {
    ql_slabs slabs;
    ql_state_slabs(m, part, &slabs);
    if (i < slabs.n_dropped || i >= slabs.n)
        return ql_fail(err, QL_INVALID_VALUE, "there is no slab %lld: there are %lld ... %lld",
                       (long long)i, (long long)slabs.n_dropped, (long long)slabs.n - 1);
    memcpy(out, ql_store_at(store_of(m, part), i), slabs.bytes);
    return QL_OK;
}

/* Slabs of one volume only, which the memory keeps alive and asks whether it is damaged. */
static ql_status map_slab(ql_memory *m, ql_part part, int64_t i, ql_volume *volume, int64_t offset,
                          ql_error *err) {
    if (m->volume && m->volume != volume)
        return ql_fail(err, QL_INVALID_VALUE, "the session has slabs in another file already");
    ql_status status = ql_store_map(store_of(m, part), i, volume, offset, err);
    if (status || m->volume) return status;
    ql_volume_retain(volume);
    m->volume = volume;
    return QL_OK;
}

ql_status ql_state_map_slab(ql_memory *m, ql_part part, int64_t i, ql_volume *volume,
                            int64_t offset, ql_error *err) {
    ql_slabs slabs;
    ql_state_slabs(m, part, &slabs);
    if (i < slabs.n_dropped || i >= slabs.n_full)
        return ql_fail(err, QL_INVALID_VALUE, "slab %lld is not full: %lld ... %lld are",
                       (long long)i, (long long)slabs.n_dropped, (long long)slabs.n_full - 1);
    if (ql_store_mapped(store_of(m, part), i))
        return ql_fail(err, QL_INVALID_VALUE, "slab %lld lies in a file already", (long long)i);
    return map_slab(m, part, i, volume, offset, err);
}

/* ---- the rest ---- */

void ql_state_counters(const ql_memory *m, int64_t counters[QL_N_COUNTERS]) {
    const int64_t values[] = {[QL_N_TOKENS] = m->n_tokens,
                              [QL_N_FIRST] = m->n_first,
                              [QL_N_BLOCKS] = m->n_blocks,
                              [QL_QUESTION_BEGIN] = m->question.begin,
                              [QL_QUESTION_END] = m->question.end,
                              [QL_QUESTION_KNOWN] = m->question.known,
                              [QL_N_CHOSEN] = m->n_kept};
    memcpy(counters, values, sizeof values);
}

static int64_t window_tokens(const ql_memory *m) {
    return ql_memory_full(m) ? 0 : m->n_tokens - ql_memory_window_first(m);
}

size_t ql_state_array_bytes(const ql_memory *m, ql_array array) {
    size_t vectors = (size_t)m->heads.n_layers * ql_memory_width(m) * sizeof(float),
           asked = (size_t)(m->question.end - m->question.begin);
    switch (array) {
    case QL_WINDOW_KEYS: return ql_window_key_bytes(&m->window, window_tokens(m));
    case QL_WINDOW_SCORES: return ql_window_score_bytes(&m->window, window_tokens(m));
    case QL_QUERY_SUMS: return ql_memory_sums(m) * sizeof *m->query_sum;
    case QL_QUESTION_QUERIES: return m->question.known ? 0 : vectors * asked;
    case QL_QUESTION_VECTORS: return m->question.known ? vectors : 0;
    case QL_CHOSEN: return m->n_kept > 0 ? ql_memory_choices(m) * sizeof *m->kept : 0;
    case QL_N_ARRAYS: break;
    }
    return 0;
}

/* Where an array lies in the memory; NULL of the window's, which lie apart. */
static void *array_of(const ql_memory *m, ql_array array) {
    switch (array) {
    case QL_QUERY_SUMS: return m->query_sum;
    case QL_QUESTION_QUERIES: return m->question.queries;
    case QL_QUESTION_VECTORS: return m->question.vectors;
    case QL_CHOSEN: return m->kept;
    default: return NULL;
    }
}

void ql_state_copy_array(const ql_memory *m, ql_array array, void *out) {
    size_t bytes = ql_state_array_bytes(m, array);
    if (!bytes) return;
    if (array == QL_WINDOW_KEYS) {
        ql_window_take(&m->window, ql_memory_window_first(m), m->n_tokens, out, NULL);
        /* Keys of the last layer of a session that skims are never met, and never written. */
        size_t layer = bytes / (size_t)m->heads.n_layers;
        if (ql_memory_skims(m)) memset((char *)out + bytes - layer, 0, layer);
    } else if (array == QL_WINDOW_SCORES)
        ql_window_take(&m->window, ql_memory_window_first(m), m->n_tokens, NULL, out);
    else
        memcpy(out, array_of(m, array), bytes);
}

/* ---- restoring ---- */

static ql_status misfit(const char *what, ql_error *err) {
    return ql_fail(err, QL_DAMAGED,
                   "what was saved contradicts itself or the session's settings (%s)", what);
}

/* Whether as many tokens wait as a commit leaves: what a chunk reserves is counted from that. */
static bool as_committed(const ql_memory *m) {
    int64_t waiting = m->n_tokens - ql_memory_first_waiting(m), n_local = m->config.n_local;
    if (m->n_first < m->config.n_init) return waiting <= n_local;
    return waiting < n_local + m->config.block_size && (m->n_blocks == 0 || waiting >= n_local);
}

/* The numbers of tokens, so that everything counted from them is in bounds. */
static ql_status restore_counts(ql_memory *m, const int64_t *c, ql_error *err) {
    const ql_memory_config *config = &m->config;
    int64_t tokens = c[QL_N_TOKENS], first = c[QL_N_FIRST], blocks = c[QL_N_BLOCKS];
    if (tokens < 1 || tokens > INT64_MAX / 4 || (ql_memory_full(m) && tokens > QL_MAX_FULL))
        return misfit("tokens", err);
    bool has_blocks = ql_memory_has_blocks(m);
    if (first < 0 || first > (has_blocks ? config->n_init : 0) || blocks < 0 ||
        blocks >
            (has_blocks && first == config->n_init ? (tokens - first) / config->block_size : 0) ||
        first > tokens || blocks > INT32_MAX)
        return misfit("blocks", err);
    m->n_tokens = tokens;
    m->n_first = first;
    m->n_blocks = blocks;
    if (has_blocks && !as_committed(m)) return misfit("blocks", err);
    if (!ql_memory_full(m) && window_tokens(m) + config->exc_block_size > m->window.capacity)
        return misfit("window", err);
    return QL_OK;
}

static ql_status restore_question(ql_memory *m, const int64_t *c, ql_error *err) {
    int64_t begin = c[QL_QUESTION_BEGIN], end = c[QL_QUESTION_END];
    if (begin < 0 || end < begin || end - begin > m->config.n_local || end > INT64_MAX / 4 ||
        (end > begin && m->config.mode != QL_QLLM) ||
        (c[QL_QUESTION_KNOWN] && (end == begin || end > m->n_tokens)) ||
        (!c[QL_QUESTION_KNOWN] && end > begin && begin < ql_memory_window_first(m)))
        return misfit("question", err);
    ql_status status = end > begin ? ql_memory_ask(m, begin, end, err) : QL_OK;
    if (!status && c[QL_QUESTION_KNOWN]) ql_memory_heard(m);
    return status;
}

static ql_status restore_array(ql_memory *m, const ql_saved *saved, ql_array array, ql_error *err) {
    size_t bytes = ql_state_array_bytes(m, array);
    if (saved->array_bytes[array] != bytes) return misfit("the size of an array", err);
    if (array_of(m, array) && bytes) memcpy(array_of(m, array), saved->arrays[array], bytes);
    return QL_OK;
}

static ql_status restore_chosen(ql_memory *m, int64_t n, ql_error *err) {
    int64_t most = m->config.topk < m->n_blocks ? m->config.topk : m->n_blocks;
    if (n < -1 || n > most) return misfit("chosen blocks", err);
    m->n_kept = (int)n;
    return QL_OK;
}

static ql_status check_chosen(const ql_memory *m, ql_error *err) {
    for (size_t layer = 0; layer < (size_t)m->heads.n_layers; layer++)
        for (int i = 0; i < m->n_kept; i++) {
            int32_t block = m->kept[layer * (size_t)m->config.topk + (size_t)i];
            if (block < 0 || block >= m->n_blocks) return misfit("a chosen block", err);
        }
    return QL_OK;
}

/* Slabs that a memory which forgets can have dropped by now, counted from the first. */
static int64_t most_dropped(const ql_memory *m, ql_part part) {
    int64_t forgotten = m->n_tokens - m->config.n_local;
    if (part != QL_PAGES || !ql_memory_sinks_only(m)) return 0;
    return forgotten > 0 ? ql_kv_full_pages(&m->kv, forgotten) : 0;
}

static ql_status restore_part(ql_memory *m, const ql_saved *saved, ql_part part, ql_volume *volume,
                              ql_error *err) {
    ql_store *store = store_of(m, part);
    int64_t n, n_full, dropped = 0;
    count(m, part, &n, &n_full);
    const char *inlined = saved->parts[part].inlined;
    size_t left = saved->parts[part].inlined_bytes;
    ql_status status = saved->parts[part].n == n ? QL_OK : misfit("the number of slabs", err);
    for (int64_t i = 0; i < n && !status; i++) {
        int64_t place = saved->parts[part].places[i];
        if (place >= 0 && volume && i < n_full) {
            status = map_slab(m, part, i, volume, place, err);
        } else if (place == QL_DROPPED && dropped == i && i < most_dropped(m, part)) {
            status = ql_store_add(store, NULL, err);
            dropped++;
        } else if (place == QL_INLINE && left >= store->slab_bytes) {
            status = ql_store_add(store, inlined, err);
            inlined += store->slab_bytes;
            left -= store->slab_bytes;
        } else {
            status = misfit("the place of a slab", err);
        }
    }
    if (!status && left) status = misfit("slabs that nobody needs", err);
    return status;
}

ql_status ql_state_restore(ql_memory *m, const ql_saved *saved, ql_volume *volume, ql_error *err) {
    ql_status status = restore_counts(m, saved->counters, err);
    if (!status) status = restore_question(m, saved->counters, err);
    if (!status) status = restore_chosen(m, saved->counters[QL_N_CHOSEN], err);
    for (ql_array a = 0; a < QL_N_ARRAYS && !status; a++) status = restore_array(m, saved, a, err);
    if (!status) status = check_chosen(m, err);
    if (!status && !ql_memory_full(m))
        ql_window_put(&m->window, ql_memory_window_first(m), m->n_tokens,
                      saved->arrays[QL_WINDOW_KEYS], saved->arrays[QL_WINDOW_SCORES]);
    for (ql_part part = 0; part < QL_N_PARTS && !status; part++)
        status = restore_part(m, saved, part, volume, err);
    return status;
}
