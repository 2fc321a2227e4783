/* weights.h - the model's tensors: one table from HuggingFace names to slots and shapes. */
#ifndef QL_WEIGHTS_H
#define QL_WEIGHTS_H

#include "linear.h"

typedef struct ql_layer {
    const float *input_norm, *post_attention_norm; /* [E] */
    ql_matrix q, k, v;                             /* [H*D, E], [G*D, E], [G*D, E] */
    ql_matrix o;                                   /* [E, H*D] */
    ql_matrix gate, up, down;                      /* [F, E], [F, E], [E, F] */
} ql_layer;

typedef struct ql_weights {
    ql_matrix embed, head; /* [V, E]; one and the same when tied */
    const float *norm;     /* [E] */
    ql_layer *layers;      /* [L] */
    ql_dtype dtype;        /* as asked for; each matrix has its own */
    void **owned;          /* [n_owned] memory to free */
    int n_owned;
    size_t bytes;
} ql_weights;

ql_status ql_weights_init(ql_weights *weights, const ql_config *config, ql_dtype dtype,
                          ql_error *err);
/* As ql_model_set. */
ql_status ql_weights_set(ql_weights *weights, const ql_config *config, const ql_kernels *kernels,
                         int n_threads, const char *name, const void *data, ql_dtype dtype,
                         const int64_t *shape, int rank, bool *borrow, ql_error *err);
/* Checks that nothing is missing; ties the head. */
ql_status ql_weights_seal(ql_weights *weights, const ql_config *config, ql_error *err);
/* The ways in which matrices are held, those of the layers first; returns how many. Once sealed. */
int ql_weights_held(const ql_weights *weights, const ql_config *config, ql_dtype held[4]);
void ql_weights_clear(ql_weights *weights);

#endif
