/* ql_internal.h - what the files around the forward pass share: the model, and the memory of one
 * chunk's activations.
 *
 * Letters: T tokens of this chunk, L layers, H query heads, G kv heads, D head_dim, E hidden_size,
 * F intermediate_size, V vocabulary. */
#ifndef QL_INTERNAL_H
#define QL_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "memory.h"
#include "weights.h"

typedef struct ql_workspace ql_workspace;

struct ql_model {
    ql_config config;
    ql_dtype dtype;
    int n_threads;
    const ql_kernels *kernels;
    ql_weights weights;
    double *inv_freq; /* [D/2] */
    bool sealed;
    atomic_int owners;
    ql_workspace *idle; /* workspaces that no call uses now */
};

/* Activations and scratch of a chunk. They belong to the model, since a session at rest needs none.
 */
struct ql_workspace {
    ql_workspace *next;
    void *memory;
    size_t bytes;
    float *x;         /* [T, E] residual stream */
    float *q, *k, *v; /* [T, H*D], [T, G*D], [T, G*D] */
    float *heads;     /* [T, H*D] output of attention */
    void *scratch;    /* of one product or attention, whichever runs */
};

ql_workspace *ql_workspace_take(ql_model *model, ql_error *err);
void ql_workspace_give(ql_model *model, ql_workspace *workspace);
/* Lays the workspace out for a chunk of n_tokens tokens whose attention needs attention_bytes. */
ql_status ql_workspace_layout(ql_workspace *workspace, const ql_model *model, int n_tokens,
                              size_t attention_bytes, ql_error *err);

ql_heads ql_model_heads(const ql_model *model);

/* Reads one chunk, ids [n] (valid), and commits it to the memory. logits: of the last n_logits
 * tokens, [n_logits, V]. */
ql_status ql_forward(const ql_model *model, ql_memory *memory, ql_workspace *workspace,
                     const int32_t *ids, int n, int n_logits, float *logits, const ql_feed *feed,
                     ql_error *err);

#endif
