#include <math.h>
#include <stdlib.h>

#include "blas.h"
#include "error.h"
#include "ql_internal.h"
#include "rope.h"
#include "threads.h"

/* Of any one dimension, and of layers: so no size of a session's memory leaves 64 bits (a page has
 * 2 * L * G*D * P numbers, P <= 2^20; a window of 3 * 2^20 tokens twice L * G*D). */
enum { MOST = 1 << 24, MOST_LAYERS = 1 << 14 };

static ql_status check_size(const char *name, int value, ql_error *err) {
    if (value >= 1 && value <= MOST) return QL_OK;
    return ql_fail(err, QL_INVALID_VALUE, "%s must be between 1 and %d, but is %d", name, MOST,
                   value);
}

static ql_status check_rope(const ql_config *c, ql_error *err) {
    if (!(c->rope_theta > 0) || !isfinite(c->rope_theta))
        return ql_fail(err, QL_INVALID_VALUE, "rope_theta must be a positive number, but is %g",
                       c->rope_theta);
    if ((unsigned)c->rope_type > QL_ROPE_LLAMA3)
        return ql_fail(err, QL_INVALID_VALUE,
                       "rope_type must be default, linear or llama3, but is number %d",
                       (int)c->rope_type);
    if (c->rope_type != QL_ROPE_DEFAULT && !(c->rope_factor >= 1 && isfinite(c->rope_factor)))
        return ql_fail(err, QL_INVALID_VALUE, "rope scaling factor must be at least 1, but is %g",
                       c->rope_factor);
    bool ordered =
        c->rope_low_freq_factor > 0 && c->rope_high_freq_factor > c->rope_low_freq_factor;
    if (c->rope_type == QL_ROPE_LLAMA3 && (!ordered || c->rope_original_max_position < 1))
        return ql_fail(err, QL_INVALID_VALUE,
                       "rope type llama3 needs 0 < low_freq_factor < high_freq_factor and "
                       "original_max_position_embeddings >= 1, "
                       "but has %g, %g and %d",
                       c->rope_low_freq_factor, c->rope_high_freq_factor,
                       c->rope_original_max_position);
    return QL_OK;
}

static ql_status check_config(const ql_config *c, ql_dtype dtype, int n_threads, ql_error *err) {
    const struct {
        const char *name;
        int value;
    } sizes[] = {
        {"vocab_size", c->vocab_size},
        {"hidden_size", c->hidden_size},
        {"intermediate_size", c->intermediate_size},
        {"num_hidden_layers", c->num_hidden_layers},
        {"num_attention_heads", c->num_attention_heads},
        {"num_key_value_heads", c->num_key_value_heads},
        {"head_dim", c->head_dim},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ql_status status = check_size(sizes[i].name, sizes[i].value, err);
        if (status) return status;
    }
    if (c->num_hidden_layers > MOST_LAYERS)
        return ql_fail(err, QL_INVALID_VALUE, "num_hidden_layers must be at most %d, but is %d",
                       MOST_LAYERS, c->num_hidden_layers);
    if (c->head_dim % 2 || c->head_dim > QL_MAX_HEAD_DIM)
        return ql_fail(err, QL_INVALID_VALUE, "head_dim must be even and at most %d, but is %d",
                       QL_MAX_HEAD_DIM, c->head_dim);
    if (c->num_attention_heads % c->num_key_value_heads)
        return ql_fail(err, QL_INVALID_VALUE,
                       "num_attention_heads (%d) must be a multiple of num_key_value_heads (%d)",
                       c->num_attention_heads, c->num_key_value_heads);
    if ((int64_t)c->num_attention_heads * c->head_dim > MOST)
        return ql_fail(err, QL_INVALID_VALUE, "num_attention_heads * head_dim must be at most %d",
                       MOST);
    if (!(c->rms_norm_eps >= 0) || !isfinite(c->rms_norm_eps))
        return ql_fail(err, QL_INVALID_VALUE,
                       "rms_norm_eps must be a number of at least 0, but is %g", c->rms_norm_eps);
    if (c->sliding_window < 0)
        return ql_fail(err, QL_INVALID_VALUE, "sliding_window must be 0 (none) or more, but is %d",
                       c->sliding_window);
    if (dtype != QL_F32 && dtype != QL_BF16 && (dtype < QL_INT8 || dtype > QL_STORED))
        return ql_fail(err, QL_INVALID_TYPE,
                       "a model holds its weights as float32, bfloat16, int8, q4 or stored, not "
                       "as %s",
                       ql_dtype_name(dtype));
    if (n_threads < 1 || n_threads > QL_MAX_THREADS)
        return ql_fail(err, QL_INVALID_VALUE, "n_threads must be between 1 and %d, but is %d",
                       QL_MAX_THREADS, n_threads);
    return check_rope(c, err);
}

static void destroy(ql_model *model) {
    while (model->idle) {
        ql_workspace *workspace = model->idle;
        model->idle = workspace->next;
        free(workspace->memory);
        free(workspace);
    }
    ql_weights_clear(&model->weights);
    free(model->inv_freq);
    free(model);
}

ql_model *ql_model_new(const ql_config *config, ql_dtype dtype, int n_threads, ql_error *err) {
    if (check_config(config, dtype, n_threads, err)) return NULL;
    if (ql_threads_reserve(n_threads, err)) return NULL;
    ql_model *model = calloc(1, sizeof *model);
    double *inv_freq = calloc((size_t)config->head_dim / 2, sizeof *inv_freq);
    if (!model || !inv_freq || ql_weights_init(&model->weights, config, dtype, err)) {
        if (!model || !inv_freq) ql_fail(err, QL_OUT_OF_MEMORY, "no memory for a model");
        free(model);
        free(inv_freq);
        return NULL;
    }
    model->config = *config;
    model->dtype = dtype;
    model->n_threads = n_threads;
    model->kernels = ql_kernels_get(NULL);
    model->inv_freq = inv_freq;
    ql_rope_frequencies(inv_freq, config);
    ql_blas_single_threaded();
    atomic_init(&model->owners, 1);
    return model;
}

ql_status ql_model_set(ql_model *model, const char *name, const void *data, ql_dtype dtype,
                       const int64_t *shape, int rank, bool borrow, bool *borrowed, ql_error *err) {
    if (borrowed) *borrowed = false;
    if (model->sealed)
        return ql_fail(err, QL_INVALID_VALUE, "the model is complete: tensor '%s' came too late",
                       name);
    ql_status status =
        ql_weights_set(&model->weights, &model->config, model->kernels, model->n_threads, name,
                       data, dtype, shape, rank, &borrow, err);
    if (borrowed && !status) *borrowed = borrow;
    return status;
}

ql_status ql_model_seal(ql_model *model, ql_error *err) {
    ql_status status = ql_weights_seal(&model->weights, &model->config, err);
    model->sealed = !status;
    return status;
}

void ql_model_retain(ql_model *model) {
    atomic_fetch_add_explicit(&model->owners, 1, memory_order_relaxed);
}

void ql_model_free(ql_model *model) {
    if (model && atomic_fetch_sub_explicit(&model->owners, 1, memory_order_acq_rel) == 1)
        destroy(model);
}

const ql_config *ql_model_config(const ql_model *model) { return &model->config; }
ql_dtype ql_model_dtype(const ql_model *model) { return model->dtype; }
int ql_model_held(const ql_model *model, ql_dtype held[4]) {
    return ql_weights_held(&model->weights, &model->config, held);
}
int ql_model_threads(const ql_model *model) { return model->n_threads; }
size_t ql_model_bytes(const ql_model *model) { return model->weights.bytes; }

ql_heads ql_model_heads(const ql_model *model) {
    const ql_config *c = &model->config;
    return (ql_heads){c->num_hidden_layers, c->num_attention_heads, c->num_key_value_heads,
                      c->head_dim};
}
