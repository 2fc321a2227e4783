/* tiny.h - small seeded models for the C test programs. */
#ifndef QL_TINY_H
#define QL_TINY_H

#include <stdlib.h>

#include "ql.h"

/* Uniform in [-1, 1), the same on every machine. */
static inline float tiny_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*state >> 40) / (1 << 23) - 1);
}

static inline ql_config tiny_config(void) {
    return (ql_config){.vocab_size = 61,
                       .hidden_size = 24,
                       .intermediate_size = 40,
                       .num_hidden_layers = 3,
                       .num_attention_heads = 4,
                       .num_key_value_heads = 2,
                       .head_dim = 10,
                       .rms_norm_eps = 1e-5,
                       .rope_theta = 10000,
                       .tie_word_embeddings = true};
}

/* Gives one tensor of random numbers around center; its memory is freed again (the model copies).
 */
static inline ql_status tiny_set(ql_model *model, const char *name, int64_t rows, int64_t columns,
                                 float center, float spread, uint64_t *seed, ql_error *err) {
    size_t n = (size_t)(rows * (columns ? columns : 1));
    float *data = malloc(n * sizeof *data);
    for (size_t i = 0; i < n; i++) data[i] = center + spread * tiny_random(seed);
    int64_t shape[] = {rows, columns};
    ql_status status =
        ql_model_set(model, name, data, QL_F32, shape, columns ? 2 : 1, false, NULL, err);
    free(data);
    return status;
}

/* A sealed model with random weights, or NULL. */
static inline ql_model *tiny_model(const ql_config *c, ql_dtype dtype, int n_threads,
                                   ql_error *err) {
    static const struct {
        const char *name;
        int rows, columns; /* 0: none, 1: E, 2: F, 3: H*D, 4: G*D */
    } tensors[] = {
        {"input_layernorm.weight", 1, 0},  {"post_attention_layernorm.weight", 1, 0},
        {"self_attn.q_proj.weight", 3, 1}, {"self_attn.k_proj.weight", 4, 1},
        {"self_attn.v_proj.weight", 4, 1}, {"self_attn.o_proj.weight", 1, 3},
        {"mlp.gate_proj.weight", 2, 1},    {"mlp.up_proj.weight", 2, 1},
        {"mlp.down_proj.weight", 1, 2},
    };
    const int sizes[] = {0, c->hidden_size, c->intermediate_size,
                         c->num_attention_heads * c->head_dim,
                         c->num_key_value_heads * c->head_dim};
    uint64_t seed = 7;
    ql_model *model = ql_model_new(c, dtype, n_threads, err);
    if (!model) return NULL;
    ql_status status = tiny_set(model, "model.embed_tokens.weight", c->vocab_size, c->hidden_size,
                                0, 1, &seed, err);
    if (!status)
        status = tiny_set(model, "model.norm.weight", c->hidden_size, 0, 1, 0.2f, &seed, err);
    for (int l = 0; l < c->num_hidden_layers && !status; l++) {
        for (size_t i = 0; i < sizeof tensors / sizeof *tensors && !status; i++) {
            char name[80];
            snprintf(name, sizeof name, "model.layers.%d.%s", l, tensors[i].name);
            int columns = sizes[tensors[i].columns];
            status = tiny_set(model, name, sizes[tensors[i].rows], columns, columns ? 0 : 1,
                              columns ? 0.4f : 0.2f, &seed, err);
        }
    }
    if (!status) status = ql_model_seal(model, err);
    if (!status) return model;
    ql_model_free(model);
    return NULL;
}

#endif
