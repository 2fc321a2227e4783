/* ql.h - QuickLLaMA's core: a Llama-family forward pass that reads endless text through the Q-LLM
 * memory (Li et al., "QuickLLaMA: Query-aware Inference Acceleration for Large Language Models",
 * arXiv 2406.07528).
 *
 *     ql_error err = {0};
 *     ql_model *model = ql_model_new(&config, QL_F32, 2, &err);
 *     ql_model_set(model, "model.norm.weight", norm, QL_F32, (int64_t[]){576}, 1, false, NULL,
 *                  &err);                                        // ... each tensor
 *     ql_model_seal(model, &err);                                // now the model never changes
 *     ql_session *s = ql_session_new(model, &memory, &err);
 *     ql_session_feed(s, ids, n, &(ql_feed){0}, logits, &err);   // logits [V] of the last token
 *     ql_session_free(s);
 *     ql_model_free(model);
 *
 * A model is immutable once sealed and may be used by any number of threads. A session is one
 * timeline of tokens, used by one thread at a time: a second one gets QL_BUSY. Every call that can
 * fail returns a status (or NULL) and puts the code and a sentence for the user into *err; nothing
 * prints or exits.
 *
 * Letters in shapes: T tokens of a call, L layers, H query heads, G key/value heads, D head_dim, E
 * hidden, F intermediate, V vocabulary, B memory blocks, P tokens of a block, R representative
 * tokens of a block. Arrays are C-contiguous. */
#ifndef QL_H
#define QL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum ql_status {
    QL_OK = 0,
    QL_INVALID_VALUE, /* a value out of its range, a wrong shape, a setting that is not computed */
    QL_INVALID_TYPE,  /* a dtype that cannot stand there */
    QL_MISSING_KEY,   /* a tensor that nobody gave, or that nobody knows */
    QL_OUT_OF_MEMORY,
    QL_BUSY,      /* the session is in use by another thread */
    QL_CANCELLED, /* the caller's poll function said stop */
    QL_FAILED,    /* the operating system refused (threads, mappings) */
    QL_DAMAGED,   /* a file was shortened or could not be read while it was in use */
} ql_status;

enum { QL_ERROR_TEXT = 480 };

typedef struct ql_error {
    ql_status code;
    char text[QL_ERROR_TEXT]; /* a sentence: what was expected, what came, what to do */
} ql_error;

/* How numbers are stored, in files and arrays, and how weights are held. What is stored is accepted
 * and converted. */
typedef enum ql_dtype {
    QL_F32 = 0,
    QL_F16,
    QL_BF16,
    QL_Q4_0, /* GGUF block formats, as stored in the file */
    QL_Q4_1,
    QL_Q5_0,
    QL_Q5_1,
    QL_Q8_0,
    QL_Q2_K,
    QL_Q3_K,
    QL_Q4_K,
    QL_Q5_K,
    QL_Q6_K,
    QL_N_DTYPES,
    /* Matrices are held as QL_F32, QL_BF16, or in these ways that no file has: */
    QL_INT8 = QL_N_DTYPES, /* 8 bits, one float32 scale per row */
    QL_Q4,     /* 4 bits in blocks of 32 with scale and minimum: Q4_0 and Q4_1 as they are, all else
                  rounded; the embedding and the head as QL_INT8 */
    QL_STORED, /* each matrix in that of the four ways which is nearest to how it is stored */
} ql_dtype;

const char *ql_dtype_name(ql_dtype dtype); /* "float32", "bfloat16", "q4_1", ..., "int8" */
bool ql_dtype_parse(const char *name, ql_dtype *dtype); /* of a format of files */
bool ql_held_parse(const char *name, ql_dtype *dtype);  /* of what ql_model_new takes */
/* How a matrix that is stored as `from` is held in a model of dtype `asked`: QL_F32, QL_BF16,
 * QL_INT8 or QL_Q4. vocabulary: it is the embedding or the head. */
ql_dtype ql_held_as(ql_dtype asked, ql_dtype from, bool vocabulary);

/* ---- CPU variants: the kernels of one instruction set, chosen when a model is made ---- */
enum { QL_MAX_VARIANTS = 8 };
/* Names those that run here, best first; returns how many. */
int ql_cpu_variants(const char *names[QL_MAX_VARIANTS]);
const char *ql_cpu_variant(void);                              /* the one that new models get */
ql_status ql_set_cpu_variant(const char *name, ql_error *err); /* NULL: the best one again */
bool ql_cpu_computes_bf16(void); /* the CPU has bfloat16 dot products */

/* ---- model ---- */
typedef enum ql_rope_type { QL_ROPE_DEFAULT = 0, QL_ROPE_LINEAR, QL_ROPE_LLAMA3 } ql_rope_type;

typedef struct ql_config { /* HuggingFace config.json names */
    int vocab_size, hidden_size, intermediate_size, num_hidden_layers;
    int num_attention_heads, num_key_value_heads, head_dim;
    double rms_norm_eps;
    double rope_theta;
    ql_rope_type rope_type;
    double rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    int rope_original_max_position;
    int sliding_window; /* of mode QL_FULL; 0: none */
    bool qkv_bias, o_bias, mlp_bias, tie_word_embeddings;
} ql_config;

typedef struct ql_model ql_model;

enum { QL_MAX_THREADS = 64 };

/* Returns a new model without weights. dtype: QL_F32, QL_BF16, QL_INT8, QL_Q4 or QL_STORED, how the
 * matrices are held (norms and biases are always float32). n_threads: 1 ... QL_MAX_THREADS. */
ql_model *ql_model_new(const ql_config *config, ql_dtype dtype, int n_threads, ql_error *err);

/* Gives one tensor by its HuggingFace name; data holds shape[0] * ... values of dtype. With borrow,
 * a tensor that can be used as it lies is not copied: *borrowed (may be NULL) tells, and data must
 * then outlive the model. */
ql_status ql_model_set(ql_model *model, const char *name, const void *data, ql_dtype dtype,
                       const int64_t *shape, int rank, bool borrow, bool *borrowed, ql_error *err);

/* Checks that every tensor is there. A model that is not sealed makes no session. */
ql_status ql_model_seal(ql_model *model, ql_error *err);

void ql_model_retain(ql_model *model); /* one more owner */
void ql_model_free(ql_model *model);   /* one owner less; the last one frees. NULL is fine. */

const ql_config *ql_model_config(const ql_model *model);
ql_dtype ql_model_dtype(const ql_model *model); /* as it was made with */
/* The ways in which its matrices are held, those of the layers first; returns how many. */
int ql_model_held(const ql_model *model, ql_dtype held[4]);
int ql_model_threads(const ql_model *model);
size_t ql_model_bytes(const ql_model *model); /* of weights, borrowed ones included */

/* ---- memory and session ---- */
typedef enum ql_mode {
    QL_FULL = 0, /* plain causal attention over everything */
    QL_STREAM,   /* attention sinks and sliding window (StreamingLLM) */
    QL_INFINITE, /* the same with un-rotated sinks (LM-Infinite) */
    QL_INFLLM,   /* blocks retrieved by the current tokens (InfLLM) */
    QL_QLLM,     /* ... and by the question (Q-LLM) */
} ql_mode;

typedef enum ql_mask {
    /* every key once: locally below the distance n_local, globally from there on */
    QL_MASK_EXACT = 0,
    /* the published code: every query of a chunk sees all of the remainder */
    QL_MASK_AUTHORS,
} ql_mask;

/* What is kept of each chunk and layer, as a ql_trace_record: nothing, the blocks chosen, or the
 * scores of all blocks, too, which are computed for it at every token whatever lookup_interval is.
 */
typedef enum ql_tracing { QL_TRACE_NOTHING, QL_TRACE_CHOICES, QL_TRACE_SCORES } ql_tracing;

typedef struct ql_memory_config {
    ql_mode mode;
    ql_mask mask;
    int n_init;         /* first tokens, always attended */
    int n_local;        /* sliding window */
    int block_size;     /* P */
    int topk;           /* blocks retrieved per layer and chunk */
    int repr_topk;      /* R; also the number of question tokens that make the question vector */
    int exc_block_size; /* most tokens of an execution chunk, <= n_local */
    /* While tokens come one at a time, blocks are looked up anew at the first of them and at
     * positions that are multiples of this; those between attend to the blocks chosen last. 1, or
     * 0: at every token, as in the paper. */
    int lookup_interval;
    float question_weight; /* the paper's beta */
    /* Of QL_QLLM: every chunk attends to the question's tokens, wherever they lie (the paper's Q in
     * M = [G, Q, R, L]); without it, once they are in blocks, only if these are retrieved (the
     * published code). */
    bool keep_query_tokens;
    /* Keys and values: QL_F32, QL_BF16, or QL_INT8 with a float32 scale for each key and value of a
     * token and kv head. What there is little of, the window's rotated keys and the blocks'
     * vectors, is QL_BF16 in the last case, too. */
    ql_dtype kv_dtype;
    ql_tracing trace;
} ql_memory_config;

/* One execution chunk in one layer: what the lookup saw and chose. */
typedef struct ql_trace_record {
    int64_t first_token;
    int n_tokens, layer;
    int n_blocks, n_chosen;
    /* [n_chosen], ascending; block b holds tokens n_init + b*P ... n_init + (b+1)*P - 1 */
    const int32_t *block_ids;
    const float *scores; /* [n_blocks]; n_blocks is 0 with QL_TRACE_CHOICES */
} ql_trace_record;

typedef struct ql_session ql_session;

/* Polled in every layer; true means stop. */
typedef bool (*ql_poll)(void *context);

typedef struct ql_head {
    int layer, head; /* a query head */
} ql_head;

typedef struct ql_feed {
    bool all_logits;        /* logits of every token, not only of the last */
    int64_t question_begin; /* tokens [begin, end) of this call are the question; */
    int64_t question_end;   /* 0, 0: none in this call */
    ql_poll poll;           /* NULL: cannot be stopped */
    void *poll_context;
    const ql_head *heads; /* [n_heads] whose queries are wanted too, where ranking is possible */
    int n_heads;
    float *queries; /* out [n_heads, n, D], not rotated */
} ql_feed;

/* Returns a new, empty session, which keeps the model alive. */
ql_session *ql_session_new(ql_model *model, const ql_memory_config *memory, ql_error *err);
/* Returns a new, empty session that skims: only the layers up to the highest of heads [n_heads] are
 * computed, of the last one only queries and keys. The un-rotated keys of these heads are kept for
 * every token, all else that leaves the window is forgotten (modes QL_STREAM and QL_INFINITE). It
 * has no logits; what it is for is ql_session_rank. */
ql_session *ql_session_skim(ql_model *model, const ql_memory_config *memory, const ql_head *heads,
                            int n_heads, ql_error *err);
/* Returns a new session that goes on from here by itself; full pages are shared, the rest is
 * copied. Its trace begins empty. */
ql_session *ql_session_fork(ql_session *session, ql_tracing trace, ql_error *err);
/* Empty again; the question span that was set is kept. */
ql_status ql_session_reset(ql_session *session, ql_error *err);
void ql_session_free(ql_session *session); /* NULL is fine */

/* Tokens [begin, end), counted from the session's first token, are the question. Before the first
 * token is fed. */
ql_status ql_session_set_question(ql_session *session, int64_t begin, int64_t end, ql_error *err);

/* Reads n tokens, cut from ids[0] on into execution chunks. logits: [V] of the last token, [n, V]
 * with all_logits, or NULL. Each chunk is a transaction: whatever stops the call, the session
 * stands at a chunk's end (ql_session_length tells). */
ql_status ql_session_feed(ql_session *session, const int32_t *ids, int64_t n, const ql_feed *feed,
                          float *logits, ql_error *err);

int64_t ql_session_length(const ql_session *session);
bool ql_session_skims(const ql_session *session);
int ql_session_layers(const ql_session *session);   /* that are computed */
size_t ql_session_bytes(const ql_session *session); /* memory held, shared pages included */
int64_t ql_session_blocks(const ql_session *session);
/* out [B, H*D]; [H*D]. QL_INVALID_VALUE when there is no such layer, or (question) no question
 * vector yet. */
ql_status ql_session_block_vectors(ql_session *session, int layer, float *out, ql_error *err);
ql_status ql_session_question_vector(ql_session *session, int layer, float *out, ql_error *err);

/* ---- retrieval: which passages a question is about, and using them ----
 * In the modes QL_INFLLM and QL_QLLM, whose pages keep every token; the first two also in a session
 * that skims. Not in the paper. */

/* out [H*D]: the mean of a layer's queries, not rotated, over all tokens read. */
ql_status ql_session_mean_query(ql_session *session, int layer, float *out, ql_error *err);

/* Scores the tokens [begin, end) in pieces of piece tokens (the last one may be shorter). queries
 * [n_heads, n_queries, D]. scores [n_heads, pieces]: mean over the queries of the best product with
 * an un-rotated key of the piece. */
ql_status ql_session_rank(ql_session *session, const ql_head *heads, int n_heads,
                          const float *queries, int n_queries, int64_t begin, int64_t end,
                          int64_t piece, float *scores, ql_error *err);

/* From now on every lookup chooses these n blocks (ascending ids), in all layers; n < 0: by score
 * again. */
ql_status ql_session_pin(ql_session *session, const int32_t *blocks, int n, ql_error *err);

/* Returns a new session of mode QL_FULL that has read nothing but the given ranges of tokens,
 * ranges [n, 2] (begin, end) ascending and apart, at consecutive positions: their keys and values
 * are taken from here, not computed anew. */
ql_session *ql_session_excerpt(ql_session *session, const int64_t *ranges, int n, ql_error *err);

/* ---- a session and files ----
 * What grows with a session lies in slabs, which get full one after the other and never change from
 * then on: a full one may be exchanged for its copy in a file. The rest are counters and a few
 * arrays. Who writes files, and how they look, is the caller's affair; slabs hold numbers as this
 * machine does. */

typedef struct ql_volume ql_volume; /* a file that is mapped, see volume.h */
enum { QL_VOLUME_PAGE = 4096 };     /* offsets of slabs are multiples of it */

/* Maps an open file; fd may be closed afterwards. Of its slabs at most budget bytes stay in memory;
 * those touched last can make it a few more. */
ql_volume *ql_volume_open(int fd, size_t budget, ql_error *err);
void ql_volume_set_budget(ql_volume *volume, size_t budget);
void ql_volume_retain(ql_volume *volume);           /* one more owner */
void ql_volume_free(ql_volume *volume);             /* one owner less; NULL is fine */
size_t ql_volume_resident(const ql_volume *volume); /* bytes of slabs in memory, at most */
bool ql_volume_damaged(ql_volume *volume);

typedef enum ql_part { QL_FIRST = 0, QL_PAGES, QL_VECTORS, QL_KEYS, QL_N_PARTS } ql_part;

typedef struct ql_slabs { /* of a part */
    size_t bytes;         /* of one */
    int64_t tokens;       /* that one is for; 0: the part does not grow with the session */
    int64_t n;            /* slabs in use, those dropped at the beginning included */
    int64_t n_dropped;
    int64_t n_full; /* of the first ones: these never change again */
} ql_slabs;

ql_status ql_session_slabs(ql_session *session, ql_part part, ql_slabs *slabs, ql_error *err);
/* out [bytes]: slab i, not a dropped one. */
ql_status ql_session_copy_slab(ql_session *session, ql_part part, int64_t i, void *out,
                               ql_error *err);
/* From now on slab i, a full one, is what lies in the volume at offset: a copy of it. */
ql_status ql_session_map_slab(ql_session *session, ql_part part, int64_t i, ql_volume *volume,
                              int64_t offset, ql_error *err);

typedef enum ql_counter {
    QL_N_TOKENS = 0,
    QL_N_FIRST,
    QL_N_BLOCKS,
    QL_QUESTION_BEGIN,
    QL_QUESTION_END,
    QL_QUESTION_KNOWN,
    QL_N_CHOSEN,
    QL_N_COUNTERS
} ql_counter;

typedef enum ql_array {
    QL_WINDOW_KEYS = 0,  /* [L, G, tokens, D] as keys are kept */
    QL_WINDOW_SCORES,    /* float32 [L, H, tokens] */
    QL_QUERY_SUMS,       /* float64 [L, H*D] */
    QL_QUESTION_QUERIES, /* float32 [L, question, H*D], as long as the vectors are not known */
    QL_QUESTION_VECTORS, /* float32 [L, H*D] */
    QL_CHOSEN,           /* int32 [L, topk] */
    QL_N_ARRAYS
} ql_array;

/* What a session holds beside its slabs. Of a session with pinned blocks: QL_INVALID_VALUE. */
ql_status ql_session_counters(ql_session *session, int64_t counters[QL_N_COUNTERS],
                              size_t array_bytes[QL_N_ARRAYS], ql_error *err);
ql_status ql_session_copy_array(ql_session *session, ql_array array, void *out, ql_error *err);

enum { QL_DROPPED = -1, QL_INLINE = -2 };

typedef struct ql_saved { /* what the functions above have told */
    int64_t counters[QL_N_COUNTERS];
    const void *arrays[QL_N_ARRAYS];
    size_t array_bytes[QL_N_ARRAYS];
    struct {
        const int64_t *places; /* [n]: offset in the volume, QL_DROPPED, QL_INLINE: of inlined */
        int64_t n;
        const void *inlined; /* slabs that are copied, one behind the other */
        size_t inlined_bytes;
    } parts[QL_N_PARTS];
} ql_saved;

/* Makes an empty session, made for the same model and with the same settings, stand where the saved
 * one stood. volume: of the places; NULL: none of them is in a file. All is checked: what does not
 * fit is QL_INVALID_VALUE or QL_DAMAGED, and the session stays empty. */
ql_status ql_session_restore(ql_session *session, const ql_saved *saved, ql_volume *volume,
                             ql_error *err);

int64_t ql_session_trace_count(const ql_session *session);
const ql_trace_record *ql_session_trace(const ql_session *session,
                                        int64_t index); /* borrowed until the next call */

/* Full causal attention over ids [n] in float32 keys; logits [keep, V] of the last keep tokens. n
 * <= QL_MAX_FULL. */
enum { QL_MAX_FULL = 131072 };
ql_status ql_model_forward(ql_model *model, const int32_t *ids, int64_t n, int64_t keep,
                           const ql_feed *feed, float *logits, ql_error *err);

#endif
