/* forward.c - one execution chunk through all layers. */
#include <stdlib.h>

#include "error.h"
#include "ql_internal.h"
#include "sizes.h"
#include "store.h"

/* ---- workspace ---- */

/* A model keeps the activations' memory for the next call, but not what full attention over a very
 * long text took. */
static const size_t MOST_IDLE_BYTES = (size_t)256 << 20;

/* One lock for all models, so that a child process can have it anew: it may have been held by one
 * of the threads that are not in the child. */
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t prepared = PTHREAD_ONCE_INIT;

static void reset_in_child(void) { pthread_mutex_init(&idle_lock, NULL); }
static void prepare(void) { pthread_atfork(NULL, NULL, reset_in_child); }

ql_workspace *ql_workspace_take(ql_model *model, ql_error *err) {
    pthread_once(&prepared, prepare);
    pthread_mutex_lock(&idle_lock);
    ql_workspace *workspace = model->idle;
    if (workspace) model->idle = workspace->next;
    pthread_mutex_unlock(&idle_lock);
    if (!workspace) workspace = calloc(1, sizeof *workspace);
    if (!workspace) ql_fail(err, QL_OUT_OF_MEMORY, "no memory for activations");
    return workspace;
}

void ql_workspace_give(ql_model *model, ql_workspace *workspace) {
    if (workspace->bytes > MOST_IDLE_BYTES) {
        free(workspace->memory);
        free(workspace);
        return;
    }
    pthread_mutex_lock(&idle_lock);
    workspace->next = model->idle;
    model->idle = workspace;
    pthread_mutex_unlock(&idle_lock);
}

static ql_norm norm_of(const ql_model *model, const float *weight) {
    return (ql_norm){weight, (float)model->config.rms_norm_eps};
}

static ql_mlp mlp_of(const ql_model *model, const ql_layer *layer) {
    return (ql_mlp){&layer->gate, &layer->up, &layer->down,
                    norm_of(model, layer->post_attention_norm)};
}

static size_t matrix_scratch(const ql_model *model, const ql_matrix *w, bool normed, int n_rows) {
    return ql_linear_scratch(model->kernels, model->n_threads, w, normed, n_rows);
}

/* Layers have the same shapes, but each of their matrices may be held in a format of its own. */
static size_t product_scratch(const ql_model *model, int n_rows) {
    size_t bytes = ql_larger(64, matrix_scratch(model, &model->weights.head, true, n_rows));
    for (int i = 0; i < model->config.num_hidden_layers; i++) {
        const ql_layer *l = &model->weights.layers[i];
        const ql_matrix *matrices[] = {&l->q, &l->k, &l->v, &l->o};
        for (size_t j = 0; j < sizeof matrices / sizeof *matrices; j++)
            bytes =
                ql_larger(bytes, matrix_scratch(model, matrices[j], matrices[j] != &l->o, n_rows));
        ql_mlp mlp = mlp_of(model, l);
        bytes = ql_larger(bytes, ql_mlp_scratch(model->kernels, model->n_threads, &mlp, n_rows));
    }
    return ql_aligned(bytes);
}

ql_status ql_workspace_layout(ql_workspace *w, const ql_model *model, int n_tokens,
                              size_t attention_bytes, ql_error *err) {
    const ql_config *c = &model->config;
    size_t E = c->hidden_size, D = c->head_dim;
    size_t queries = c->num_attention_heads * D, keys = c->num_key_value_heads * D;
    struct {
        float **at;
        size_t row;
    } parts[] = {{&w->x, E}, {&w->q, queries}, {&w->k, keys}, {&w->v, keys}, {&w->heads, queries}};
    enum { N_PARTS = sizeof parts / sizeof *parts };
    size_t need = ql_larger(product_scratch(model, n_tokens), attention_bytes);
    for (int i = 0; i < N_PARTS; i++) need += ql_aligned(n_tokens * parts[i].row * sizeof(float));
    if (need > w->bytes) {
        free(w->memory);
        w->bytes = need + need / 4; /* the remainder and the blocks still grow a little */
        w->memory = ql_alloc(w->bytes);
        if (!w->memory) {
            w->bytes = 0;
            return ql_fail(err, QL_OUT_OF_MEMORY,
                           "no memory for the activations of %d tokens (%zu bytes)", n_tokens,
                           need);
        }
    }
    char *at = w->memory;
    for (int i = 0; i < N_PARTS; i++) {
        *parts[i].at = (float *)at;
        at += ql_aligned(n_tokens * parts[i].row * sizeof(float));
    }
    w->scratch = at;
    return QL_OK;
}

/* ---- products ---- */

static ql_linear_job job(float *y, const float *x, ql_norm norm, const ql_matrix *w) {
    return (ql_linear_job){.y = y, .x = x, .w = w, .ldy = w->n_out, .ldx = w->n_in, .norm = norm};
}

static void multiply(const ql_model *model, ql_workspace *w, const ql_linear_job *jobs, int n_jobs,
                     int n_rows) {
    ql_linear(model->kernels, model->n_threads, jobs, n_jobs, n_rows, w->scratch);
}

static void add_product(const ql_model *model, ql_workspace *w, float *y, const float *x,
                        const ql_matrix *matrix, int n_rows) {
    ql_linear_job sum = job(y, x, (ql_norm){0}, matrix);
    sum.accumulate = true;
    multiply(model, w, &sum, 1, n_rows);
}

/* ---- the forward pass ---- */

/* The last layer of a session that skims: only its queries and keys are wanted. */
static void layer_keys(const ql_model *model, ql_memory *memory, ql_workspace *w, int l, int n) {
    const ql_layer *layer = &model->weights.layers[l];
    ql_norm norm = norm_of(model, layer->input_norm);
    ql_linear_job qk[] = {job(w->q, w->x, norm, &layer->q), job(w->k, w->x, norm, &layer->k)};
    multiply(model, w, qk, 2, n);
    ql_memory_note(memory, l, w->q, w->k);
}

static void layer_forward(const ql_model *model, ql_memory *memory, ql_workspace *w, int l, int n) {
    const ql_layer *layer = &model->weights.layers[l];
    ql_norm norm = norm_of(model, layer->input_norm);
    ql_linear_job qkv[] = {job(w->q, w->x, norm, &layer->q), job(w->k, w->x, norm, &layer->k),
                           job(w->v, w->x, norm, &layer->v)};
    multiply(model, w, qkv, 3, n);
    ql_memory_attend(memory, l, w->heads, w->q, w->k, w->v, w->scratch);
    add_product(model, w, w->x, w->heads, &layer->o, n);
    ql_mlp mlp = mlp_of(model, layer);
    ql_mlp_add(model->kernels, model->n_threads, &mlp, w->x, w->x, n, w->scratch);
}

static ql_status stopped(const ql_feed *feed, ql_error *err) {
    if (!feed->poll || !feed->poll(feed->poll_context)) return QL_OK;
    return ql_fail(err, QL_CANCELLED, "stopped by the caller");
}

ql_status ql_forward(const ql_model *model, ql_memory *memory, ql_workspace *w, const int32_t *ids,
                     int n, int n_logits, float *logits, const ql_feed *feed, ql_error *err) {
    size_t E = model->config.hidden_size;
    ql_status status = ql_memory_begin(memory, n, err);
    if (!status) status = ql_workspace_layout(w, model, n, ql_memory_scratch(memory), err);
    if (status) return status;
    for (int t = 0; t < n; t++)
        ql_matrix_row(model->kernels, w->x + t * E, &model->weights.embed, ids[t]);
    int last = memory->heads.n_layers - 1; /* of the layers that the memory is for */
    for (int l = 0; l <= last; l++) {
        if ((status = stopped(feed, err))) return status;
        if (l == last && ql_memory_skims(memory))
            layer_keys(model, memory, w, l, n);
        else
            layer_forward(model, memory, w, l, n);
    }
    if ((status = stopped(feed, err))) return status;
    if (n_logits > 0) {
        ql_linear_job head = job(logits, w->x + (size_t)(n - n_logits) * E,
                                 norm_of(model, model->weights.norm), &model->weights.head);
        multiply(model, w, &head, 1, n_logits);
    }
    ql_memory_commit(memory);
    return QL_OK;
}
