/* memory.h - the Q-LLM memory of one timeline: what each layer attends to, chunk by chunk. Reads
 * like the paper; knows heads, not the model around them. Counters are common to all layers, since
 * every layer cuts the same tokens the same way.
 *
 * Tokens, by position: [first tokens | blocks | waiting], the waiting ones being those in no block
 * yet, the window's included. A chunk is a transaction: begin (all memory is had), attend for each
 * layer (writes only what lies behind the committed tokens), commit (cannot fail). A chunk that is
 * not committed never was. */
#ifndef QL_MEMORY_H
#define QL_MEMORY_H

#include "keys.h"
#include "lookup.h"
#include "trace.h"
#include "window.h"

enum { QL_MAX_REPR = 1024 };

typedef struct ql_question {
    int64_t begin, end; /* tokens; begin == end: there is none */
    float *queries;     /* [L, end - begin, H*D] as they were read, not rotated */
    float *vectors;     /* [L, H*D], rotated to the far distance */
    bool known;         /* vectors are set */
} ql_question;

/* The chunk that was begun, with what its layers compute: nothing that is committed, so that a fork
 * begins without. */
typedef struct ql_chunk {
    int n;               /* tokens */
    int64_t local_first; /* first local key */
    const ql_feed *feed; /* the heads that the caller listens to; or NULL */
    int64_t heard;       /* tokens of the call before this chunk, and of the whole call: */
    int64_t call_tokens; /* feed->queries is [n_heads, call_tokens, D] */
    float *cos, *sin;    /* [n, D/2] */
    float *mass;         /* [L, H, local keys]: local scores it adds */
    float *sum;          /* [L, H*D] of its queries */
    float *query;        /* [H*D] of the lookup */
    float *scores;       /* [n_blocks] */
    int32_t *chosen;     /* [L, topk] by its look-ups */
    ql_span *spans;
    size_t tables_capacity, mass_capacity, scores_capacity, spans_capacity; /* items */
} ql_chunk;

typedef struct ql_memory {
    ql_heads heads;
    ql_memory_config config;
    const ql_kernels *kernels;
    int n_threads;
    const double *inv_freq; /* [D/2], borrowed */
    int64_t reach;          /* local distances are 0 ... reach - 1 */

    int64_t n_tokens; /* committed */
    int64_t n_first;  /* first tokens so far, at most config.n_init */
    int64_t n_blocks;
    ql_kv kv;
    ql_window window; /* not in mode full, whose pages hold rotated keys */
    ql_index index;
    ql_question question;
    ql_trace trace;
    ql_keys keys;      /* of every token, where the session skims */
    ql_volume *volume; /* of the slabs that lie in a file; NULL: none does */
    double *query_sum; /* [L, H*D] of all queries read, not rotated; where someone may rank */
    int32_t *pinned;   /* [n_pinned] blocks that every lookup chooses; NULL: by score */
    int n_pinned;

    float *far_cos, *far_sin; /* [D/2] of the far distance */
    int32_t *kept;            /* [L, topk] by the last token that looked up, for those after it */
    int n_kept;               /* blocks of a layer in kept; -1: none that may be used */
    ql_chunk chunk;
} ql_memory;

static inline bool ql_memory_full(const ql_memory *m) { return m->config.mode == QL_FULL; }
/* First tokens and window only (StreamingLLM, LM-Infinite): what leaves the window is forgotten. */
static inline bool ql_memory_sinks_only(const ql_memory *m) {
    return m->config.mode == QL_STREAM || m->config.mode == QL_INFINITE;
}
static inline bool ql_memory_has_blocks(const ql_memory *m) {
    return m->config.mode == QL_INFLLM || m->config.mode == QL_QLLM;
}
/* Forgets like the above, and keeps the un-rotated keys of a few heads. */
static inline bool ql_memory_skims(const ql_memory *m) { return m->keys.n > 0; }
/* Un-rotated keys of every token are there. */
static inline bool ql_memory_ranks(const ql_memory *m) {
    return ql_memory_has_blocks(m) || ql_memory_skims(m);
}
static inline size_t ql_memory_width(const ql_memory *m) { /* H*D */
    return (size_t)m->heads.n_heads * m->heads.head_dim;
}
static inline size_t ql_memory_sums(const ql_memory *m) { /* numbers of query_sum */
    return ql_memory_ranks(m) ? (size_t)m->heads.n_layers * ql_memory_width(m) : 0;
}
static inline size_t ql_memory_choices(const ql_memory *m) { /* numbers of kept */
    return ql_memory_has_blocks(m) ? (size_t)m->heads.n_layers * (size_t)m->config.topk : 0;
}
static inline int64_t ql_memory_first_waiting(const ql_memory *m) {
    return m->n_first + m->n_blocks * m->config.block_size;
}

/* sliding_window: of mode full; 0: none. inv_freq [D/2] must outlive the memory. */
ql_status ql_memory_init(ql_memory *memory, ql_heads heads, const ql_memory_config *config,
                         const ql_kernels *kernels, int n_threads, const double *inv_freq,
                         int sliding_window, ql_error *err);
/* Before the first token: from now on the keys that the query heads [n] meet are kept for every
 * token. In modes that forget. */
ql_status ql_memory_keep_keys(ql_memory *memory, const ql_head *heads, int n, ql_error *err);
ql_status ql_memory_fork(ql_memory *to, const ql_memory *from, ql_error *err);
void ql_memory_reset(ql_memory *memory); /* no tokens; the question stays as it is */
void ql_memory_clear(ql_memory *memory);
size_t ql_memory_bytes(const ql_memory *memory);

/* Before a chunk that begins at n_tokens: its first local key, and the first token of which the
 * window must still hold something. */
int64_t ql_memory_local_first(const ql_memory *memory);
int64_t ql_memory_window_first(const ql_memory *memory);

/* Replaces the question: tokens [begin, end), to be read from now on. */
ql_status ql_memory_ask(ql_memory *memory, int64_t begin, int64_t end, ql_error *err);

void ql_memory_unask(ql_memory *memory); /* no question */
/* Its vectors are known: its queries have served. */
void ql_memory_heard(ql_memory *memory);
void ql_question_free(ql_question *question);
/* Every lookup chooses these blocks [n], ascending; n < 0: by score again. */
ql_status ql_memory_pin(ql_memory *memory, const int32_t *blocks, int n, ql_error *err);

void ql_memory_block_vectors(const ql_memory *memory, int layer, float *out); /* out [B, H*D] */
void ql_memory_question_vector(const ql_memory *memory, int layer,
                               float *out); /* out [H*D]; the question must be known */
void ql_memory_mean_query(const ql_memory *memory, int layer,
                          float *out); /* out [H*D], not rotated; 0 before any token */

/* A chunk: its memory is had, each layer attends, and it counts. */
ql_status ql_memory_begin(ql_memory *memory, int n_tokens, ql_error *err);
size_t ql_memory_scratch(const ql_memory *memory); /* bytes that attend needs for the chunk begun */
/* What is kept of the queries [T, H*D] and keys [T, G*D] of a layer whatever it attends to, for a
 * layer that need not attend. */
void ql_memory_note(ql_memory *memory, int layer, const float *q, const float *k);
/* Notes them, and attends: out [T, H*D] from q [T, H*D], k and v [T, G*D], none of them rotated. */
void ql_memory_attend(ql_memory *memory, int layer, float *out, const float *q, const float *k,
                      const float *v, void *scratch);
void ql_memory_commit(ql_memory *memory);

#endif
