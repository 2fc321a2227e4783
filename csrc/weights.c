#include "weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "held.h"
#include "quant.h"
#include "store.h"

typedef enum dim { NONE = 0, E, F, V, HD, GD } dim;
typedef enum kind { VECTOR, MATRIX, BIAS } kind; /* a bias stands in its matrix's slot */
typedef enum when { ALWAYS, QKV_BIAS, O_BIAS, MLP_BIAS, UNTIED } when;

typedef struct slot {
    const char *name;
    size_t offset; /* in ql_layer or ql_weights */
    kind kind;
    dim rows, columns;
    when when;
} slot;

#define LAYER(field) offsetof(ql_layer, field)
static const slot LAYER_SLOTS[] = {
    /* after "model.layers.<i>." */
    {"input_layernorm.weight", LAYER(input_norm), VECTOR, E, NONE, ALWAYS},
    {"self_attn.q_proj.weight", LAYER(q), MATRIX, HD, E, ALWAYS},
    {"self_attn.q_proj.bias", LAYER(q), BIAS, HD, NONE, QKV_BIAS},
    {"self_attn.k_proj.weight", LAYER(k), MATRIX, GD, E, ALWAYS},
    {"self_attn.k_proj.bias", LAYER(k), BIAS, GD, NONE, QKV_BIAS},
    {"self_attn.v_proj.weight", LAYER(v), MATRIX, GD, E, ALWAYS},
    {"self_attn.v_proj.bias", LAYER(v), BIAS, GD, NONE, QKV_BIAS},
    {"self_attn.o_proj.weight", LAYER(o), MATRIX, E, HD, ALWAYS},
    {"self_attn.o_proj.bias", LAYER(o), BIAS, E, NONE, O_BIAS},
    {"post_attention_layernorm.weight", LAYER(post_attention_norm), VECTOR, E, NONE, ALWAYS},
    {"mlp.gate_proj.weight", LAYER(gate), MATRIX, F, E, ALWAYS},
    {"mlp.gate_proj.bias", LAYER(gate), BIAS, F, NONE, MLP_BIAS},
    {"mlp.up_proj.weight", LAYER(up), MATRIX, F, E, ALWAYS},
    {"mlp.up_proj.bias", LAYER(up), BIAS, F, NONE, MLP_BIAS},
    {"mlp.down_proj.weight", LAYER(down), MATRIX, E, F, ALWAYS},
    {"mlp.down_proj.bias", LAYER(down), BIAS, E, NONE, MLP_BIAS},
};
static const slot MODEL_SLOTS[] = {
    {"model.embed_tokens.weight", offsetof(ql_weights, embed), MATRIX, V, E, ALWAYS},
    {"model.norm.weight", offsetof(ql_weights, norm), VECTOR, E, NONE, ALWAYS},
    {"lm_head.weight", offsetof(ql_weights, head), MATRIX, V, E, UNTIED},
};
enum {
    N_LAYER_SLOTS = sizeof LAYER_SLOTS / sizeof *LAYER_SLOTS,
    N_MODEL_SLOTS = sizeof MODEL_SLOTS / sizeof *MODEL_SLOTS
};

static int size_of(dim d, const ql_config *c) {
    switch (d) {
    case E: return c->hidden_size;
    case F: return c->intermediate_size;
    case V: return c->vocab_size;
    case HD: return c->num_attention_heads * c->head_dim;
    case GD: return c->num_key_value_heads * c->head_dim;
    default: return 0;
    }
}

static bool wanted(const slot *slot, const ql_config *c) {
    switch (slot->when) {
    case QKV_BIAS: return c->qkv_bias;
    case O_BIAS: return c->o_bias;
    case MLP_BIAS: return c->mlp_bias;
    case UNTIED: return !c->tie_word_embeddings;
    default: return true;
    }
}

ql_status ql_weights_init(ql_weights *w, const ql_config *c, ql_dtype dtype, ql_error *err) {
    int L = c->num_hidden_layers;
    *w = (ql_weights){.dtype = dtype};
    w->layers = calloc((size_t)L, sizeof *w->layers);
    w->owned = calloc((size_t)L * N_LAYER_SLOTS + N_MODEL_SLOTS, sizeof *w->owned);
    if (!w->layers || !w->owned) {
        ql_weights_clear(w);
        return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for the tables of %d layers", L);
    }
    for (int l = -1; l < L; l++) {
        int n = l < 0 ? N_MODEL_SLOTS : N_LAYER_SLOTS;
        for (int i = 0; i < n; i++) {
            const slot *s = l < 0 ? &MODEL_SLOTS[i] : &LAYER_SLOTS[i];
            if (s->kind != MATRIX) continue;
            ql_matrix *matrix =
                (ql_matrix *)((char *)(l < 0 ? (void *)w : (void *)&w->layers[l]) + s->offset);
            *matrix = (ql_matrix){.n_out = size_of(s->rows, c), .n_in = size_of(s->columns, c)};
        }
    }
    return QL_OK;
}

void ql_weights_clear(ql_weights *w) {
    for (int i = 0; i < w->n_owned; i++) free(w->owned[i]);
    free(w->owned);
    free(w->layers);
    *w = (ql_weights){0};
}

/* The slot of a name and the struct it lies in; NULL when the name is unknown. */
static const slot *find(ql_weights *w, const ql_config *c, const char *name, void **base) {
    for (int i = 0; i < N_MODEL_SLOTS; i++) {
        if (strcmp(name, MODEL_SLOTS[i].name)) continue;
        *base = w;
        return &MODEL_SLOTS[i];
    }
    int layer, used = 0;
    if (sscanf(name, "model.layers.%9d.%n", &layer, &used) != 1 || !used) return NULL;
    if (layer < 0 || layer >= c->num_hidden_layers) return NULL;
    for (int i = 0; i < N_LAYER_SLOTS; i++) {
        if (strcmp(name + used, LAYER_SLOTS[i].name)) continue;
        *base = &w->layers[layer];
        return &LAYER_SLOTS[i];
    }
    return NULL;
}

/* Buffers that old checkpoints hold and nobody needs: the frequencies follow from the config. */
static bool harmless(const char *name) {
    const char *tail = ".rotary_emb.inv_freq";
    size_t n = strlen(name), t = strlen(tail);
    return n > t && !strcmp(name + n - t, tail);
}

/* Returns the rows as `held`: data itself when borrowed, else memory that w owns; NULL when there
 * is none. */
static const void *keep(ql_weights *w, const ql_kernels *kernels, int n_threads, const void *data,
                        ql_dtype from, ql_dtype held, size_t n_rows, size_t n, bool *borrow) {
    size_t bytes = ql_held_bytes(held, n_rows, n);
    *borrow = *borrow && from == held && (uintptr_t)data % ql_dtype_block_bytes(held) == 0;
    if (!*borrow) {
        void *memory = ql_alloc(bytes);
        if (!memory || ql_hold(memory, held, data, from, n_rows, n, kernels, n_threads)) {
            free(memory);
            return NULL;
        }
        data = w->owned[w->n_owned++] = memory;
    }
    w->bytes += bytes;
    return data;
}

static void shape_text(char *text, size_t size, const int64_t *shape, int rank) {
    size_t at = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < rank && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, i ? ", %lld" : "%lld", (long long)shape[i]);
    if (at < size) snprintf(text + at, size - at, "]");
}

static ql_status check(const slot *s, const ql_config *c, const char *name, ql_dtype dtype,
                       const int64_t *shape, int rank, ql_error *err) {
    int64_t expected[2] = {size_of(s->rows, c), size_of(s->columns, c)};
    int expected_rank = s->kind == MATRIX ? 2 : 1;
    bool same =
        rank == expected_rank && shape[0] == expected[0] && (rank == 1 || shape[1] == expected[1]);
    if (!same) {
        char want[64], got[64];
        shape_text(want, sizeof want, expected, expected_rank);
        shape_text(got, sizeof got, shape, rank);
        return ql_fail(err, QL_INVALID_VALUE,
                       "tensor '%s' must have the shape %s by the config, but has %s", name, want,
                       got);
    }
    if ((unsigned)dtype >= QL_N_DTYPES)
        return ql_fail(err, QL_INVALID_TYPE, "tensor '%s' has no known dtype", name);
    if (shape[rank - 1] % (int64_t)ql_dtype_block(dtype))
        return ql_fail(err, QL_INVALID_VALUE,
                       "tensor '%s' is %s, whose blocks of %zu do not divide its rows of %lld",
                       name, ql_dtype_name(dtype), ql_dtype_block(dtype),
                       (long long)shape[rank - 1]);
    return QL_OK;
}

ql_status ql_weights_set(ql_weights *w, const ql_config *c, const ql_kernels *kernels,
                         int n_threads, const char *name, const void *data, ql_dtype dtype,
                         const int64_t *shape, int rank, bool *borrow, ql_error *err) {
    void *base = NULL;
    const slot *s = find(w, c, name, &base);
    bool may_borrow = *borrow;
    *borrow = false; /* unless it is kept */
    if (!s && harmless(name)) return QL_OK;
    if (!s)
        return ql_fail(err, QL_MISSING_KEY,
                       "tensor '%.200s' is not part of a Llama model of %d layers: check the "
                       "config, or leave it out",
                       name, c->num_hidden_layers);
    /* A tied checkpoint may hold its head a second time; HuggingFace ignores it too. */
    if (!wanted(s, c) && s->when == UNTIED) return QL_OK;
    if (!wanted(s, c))
        return ql_fail(err, QL_MISSING_KEY,
                       "tensor '%.200s' came, but the config says that there is no such bias",
                       name);
    ql_status status = check(s, c, name, dtype, shape, rank, err);
    if (status) return status;
    ql_matrix *matrix = (ql_matrix *)((char *)base + s->offset);
    const float **vector =
        s->kind == BIAS ? &matrix->bias : (const float **)((char *)base + s->offset);
    if (s->kind == MATRIX ? matrix->data != NULL : *vector != NULL)
        return ql_fail(err, QL_INVALID_VALUE, "tensor '%s' came twice", name);
    bool vocabulary = s->rows == V; /* the embedding, the head */
    ql_dtype held = s->kind == MATRIX ? ql_held_as(w->dtype, dtype, vocabulary) : QL_F32;
    size_t n_rows = s->kind == MATRIX ? (size_t)shape[0] : 1, n = (size_t)shape[rank - 1];
    *borrow = may_borrow;
    const void *kept = keep(w, kernels, n_threads, data, dtype, held, n_rows, n, borrow);
    if (!kept) return ql_fail(err, QL_OUT_OF_MEMORY, "no memory for tensor '%s'", name);
    if (s->kind == MATRIX) {
        matrix->data = kept;
        matrix->dtype = held;
    } else {
        *vector = kept;
    }
    return QL_OK;
}

static bool given(const slot *s, const void *base) {
    const char *at = (const char *)base + s->offset;
    if (s->kind == MATRIX) return ((const ql_matrix *)at)->data != NULL;
    if (s->kind == BIAS) return ((const ql_matrix *)at)->bias != NULL;
    return *(const float *const *)at != NULL;
}

ql_status ql_weights_seal(ql_weights *w, const ql_config *c, ql_error *err) {
    char first[96] = "";
    int missing = 0;
    for (int l = -1; l < c->num_hidden_layers; l++) {
        const void *base = l < 0 ? (const void *)w : (const void *)&w->layers[l];
        for (int i = 0; i < (l < 0 ? N_MODEL_SLOTS : N_LAYER_SLOTS); i++) {
            const slot *s = l < 0 ? &MODEL_SLOTS[i] : &LAYER_SLOTS[i];
            if (!wanted(s, c) || given(s, base)) continue;
            if (!missing++) {
                if (l < 0)
                    snprintf(first, sizeof first, "%s", s->name);
                else
                    snprintf(first, sizeof first, "model.layers.%d.%s", l, s->name);
            }
        }
    }
    if (missing)
        return ql_fail(err, QL_MISSING_KEY,
                       "%d tensors that the config asks for are missing, the first is '%s'",
                       missing, first);
    if (c->tie_word_embeddings) w->head = w->embed;
    return QL_OK;
}

int ql_weights_held(const ql_weights *w, const ql_config *c, ql_dtype held[4]) {
    int n = 0;
    for (int l = 0; l <= c->num_hidden_layers; l++) {
        bool last = l == c->num_hidden_layers;
        const char *base = last ? (const char *)w : (const char *)&w->layers[l];
        for (int i = 0; i < (last ? N_MODEL_SLOTS : N_LAYER_SLOTS); i++) {
            const slot *s = last ? &MODEL_SLOTS[i] : &LAYER_SLOTS[i];
            if (s->kind != MATRIX) continue;
            ql_dtype dtype = ((const ql_matrix *)(base + s->offset))->dtype;
            int at = 0;
            while (at < n && held[at] != dtype) at++;
            if (at == n) held[n++] = dtype;
        }
    }
    return n;
}
