/* kernels.c - rates of the core's kernels, as one JSON object on a line for each measurement.
 *
 *     kernels VARIANT THREADS SECONDS SIZE
 *
 * VARIANT: a CPU variant by name; THREADS: of what runs on several; SECONDS: how long each
 * measurement takes at least; SIZE: 1 for what is to be reported, more to divide all large sizes
 * by it.
 *
 * What a real model reads from memory is read from memory here: its matrices, keys and values are
 * gone from the caches when they are needed again, so data is walked through in copies. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention.h"
#include "blas.h"
#include "held.h"
#include "linear.h"
#include "pieces.h"
#include "retrieval.h"
#include "threads.h"
#include "tiles.h"

enum { ROUNDS = 5 };

static const ql_kernels *kernels;
static int n_threads, size;
static double seconds;

/* ---- measuring ---- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Memory that a run keeps until its end. */
static void *memory(size_t bytes) {
    void *data = ql_alloc(bytes);
    if (!data) {
        fprintf(stderr, "kernels: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return data;
}

/* Rows of k numbers in [-1, 1), as they are kept in dtype. */
static void *kept_rows(size_t n_rows, size_t k, ql_dtype dtype) {
    size_t bytes = ql_row_bytes(dtype, k);
    char *data = memory(n_rows * bytes + 64);
    float *row = memory(k * sizeof *row);
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t j = 0; j < k; j++)
            row[j] = (float)(((i * k + j) * 7919 + 13) % 2048) / 1024 - 1;
        ql_put_row(kernels, data + i * bytes, row, dtype, k);
    }
    free(row);
    return data;
}

/* n numbers of dtype, float32 or bfloat16. */
static void *numbers(size_t n, ql_dtype dtype) { return kept_rows(1, n, dtype); }

typedef struct bench {
    const char *kernel, *limit; /* "memory", "float32", "bfloat16" or "" for none */
    double flops, bytes;        /* of one call */
    int threads;
    void (*run)(void *context, int call);
    void *context;
} bench;

/* Prints median and best of some rounds; what: sizes, in words. */
static void measure(const bench *b, const char *what) {
    double times[ROUNDS];
    int call = 0;
    b->run(b->context, call++);
    for (int round = 0; round < ROUNDS; round++) {
        double begin = now();
        int calls = 0;
        do {
            b->run(b->context, call++);
            calls++;
        } while (now() - begin < seconds / ROUNDS);
        double time = (now() - begin) / calls;
        int at = round;
        for (; at > 0 && times[at - 1] > time; at--) times[at] = times[at - 1];
        times[at] = time;
    }
    printf("{\"kernel\": \"%s\", \"what\": \"%s\", \"variant\": \"%s\", \"threads\": %d, "
           "\"seconds\": %.4g, \"best_seconds\": %.4g, \"flops\": %.6g, \"bytes\": %.6g, "
           "\"limit\": \"%s\"}\n",
           b->kernel, what, kernels->name, b->threads, times[ROUNDS / 2], times[0], b->flops,
           b->bytes, b->limit);
    fflush(stdout);
}

/* ---- few rows, mixing, exponentials: one thread, the function itself ---- */

typedef struct rows {
    int n;          /* rows of x, y or p */
    size_t n_w, k;  /* rows and columns of w or v */
    size_t copies;  /* of w, walked through */
    ql_dtype dtype; /* of w or v */
    float *x, *y;
    void *w;
} rows;

static const void *copy_of(const rows *r, int call) {
    return (const char *)r->w + (size_t)call % r->copies * r->n_w * ql_row_bytes(r->dtype, r->k);
}

static void run_dots(void *context, int call) {
    const rows *r = context;
    ql_dot_rows(kernels, r->y, r->n_w, r->x, copy_of(r, call), r->dtype, r->n, r->n_w, r->k,
                copy_of(r, call + 1));
}

static void run_mix(void *context, int call) {
    const rows *r = context;
    ql_mix_rows(kernels, r->y, r->k, r->x, r->n_w, copy_of(r, call), r->dtype, r->n, r->n_w, r->k,
                copy_of(r, call + 1));
}

static void run_exp_sum(void *context, int call) {
    (void)call;
    const rows *r = context;
    kernels->exp_sum(r->y, r->x, 1, 1, r->k);
}

static void few_rows(ql_dtype dtype, int n, size_t n_w, size_t k, size_t bytes, bool mixes) {
    size_t one = n_w * ql_row_bytes(dtype, k), copies = bytes / one ? bytes / one : 1;
    rows r = {n, n_w, k, copies, dtype, NULL, NULL, NULL};
    r.x = numbers(QL_FEW_ROWS * (mixes ? n_w : k), QL_F32);
    r.y = numbers(QL_FEW_ROWS * (mixes ? k : n_w), QL_F32);
    r.w = kept_rows(copies * n_w, k, dtype);
    bool streams = bytes > one;
    bench b = {.flops = 2.0 * n * (double)n_w * (double)k,
               .bytes = (double)one,
               .threads = 1,
               .run = mixes ? run_mix : run_dots,
               .context = &r};
    b.limit = streams ? "memory" : "float32";
    char kernel[32], what[96];
    snprintf(kernel, sizeof kernel, "%s %s", mixes ? "mix" : "dots", ql_dtype_name(dtype));
    b.kernel = kernel;
    snprintf(what, sizeof what, "%d row%s, %zu x %zu, %s", n, n > 1 ? "s" : "", n_w, k,
             streams ? "from memory" : "in cache");
    measure(&b, what);
    free(r.x);
    free(r.y);
    free(r.w);
}

static void exponentials(void) {
    rows r = {.k = 1408, .x = numbers(1408, QL_F32), .y = numbers(1408, QL_F32)};
    bench b = {"exp_sum", "", 0, 1408 * 4.0, 1, run_exp_sum, &r};
    measure(&b, "1408 scores, in cache");
    free(r.x);
    free(r.y);
}

/* ---- products of bfloat16 ---- */

typedef struct product {
    size_t k;
    uint16_t *a, *panel;
    float *c;
} product;

enum { PRODUCT_ROWS = 512 };

static void run_multiply(void *context, int call) {
    (void)call;
    const product *p = context;
    const ql_panels *panels = kernels->panels;
    panels->multiply(p->c, QL_PANEL, p->a, p->k, p->panel,
                     (size_t)panels->columns * p->k * sizeof *p->panel, PRODUCT_ROWS, QL_PANEL,
                     p->k, false);
}

static void run_pack(void *context, int call) {
    (void)call;
    const product *p = context;
    const ql_panels *panels = kernels->panels;
    for (size_t j = 0; j < QL_PANEL; j += (size_t)panels->columns)
        panels->pack_rows(p->panel + j * p->k, p->a + j * p->k, p->k, panels->columns, p->k);
}

static void panels(size_t k) {
    if (!kernels->panels) return;
    product p = {k, numbers(PRODUCT_ROWS * k, QL_BF16), numbers(QL_PANEL * k, QL_BF16),
                 numbers(PRODUCT_ROWS * QL_PANEL, QL_F32)};
    char what[96];
    snprintf(what, sizeof what, "%d rows x panel of %d, k %zu", PRODUCT_ROWS, QL_PANEL, k);
    bench multiply = {
        "panels.multiply", "bfloat16", 2.0 * PRODUCT_ROWS * QL_PANEL * (double)k, 0, 1,
        run_multiply,      &p};
    measure(&multiply, what);
    snprintf(what, sizeof what, "%d rows of %zu", QL_PANEL, k);
    bench pack = {"panels.pack_rows", "", 0, QL_PANEL * 2.0 * (double)k, 1, run_pack, &p};
    measure(&pack, what);
    free(p.a);
    free(p.panel);
    free(p.c);
}

/* ---- linear layers ---- */

typedef struct layer {
    ql_matrix w;
    size_t copies;
    int n_rows;
    float *x, *y;
    size_t one; /* bytes of a copy */
    char *data;
    void *scratch;
} layer;

static void run_linear(void *context, int call) {
    layer *l = context;
    ql_matrix w = l->w;
    w.data = (const char *)l->data + (size_t)call % l->copies * l->one;
    ql_linear_job job = {
        .y = l->y, .x = l->x, .w = &w, .ldy = (size_t)w.n_out, .ldx = (size_t)w.n_in};
    ql_linear(kernels, n_threads, &job, 1, l->n_rows, l->scratch);
}

static void linear(const char *model, ql_dtype dtype, int n_out, int n_in, int n_rows,
                   size_t bytes) {
    size_t one = ql_held_bytes(dtype, n_out, n_in);
    layer l = {.w = {NULL, NULL, n_out, n_in, dtype}, .n_rows = n_rows};
    l.copies = n_rows == 1 && bytes > one ? bytes / one : 1;
    l.x = numbers((size_t)n_rows * n_in, QL_F32);
    l.y = numbers((size_t)n_rows * n_out, QL_F32);
    l.one = one;
    l.data = memory(l.copies * one);
    float *plain = numbers((size_t)n_out * n_in, QL_F32);
    for (size_t i = 0; i < l.copies; i++)
        ql_hold(l.data + i * one, dtype, plain, QL_F32, n_out, n_in, kernels, n_threads);
    free(plain);
    l.scratch = memory(ql_linear_scratch(kernels, n_threads, &l.w, false, n_rows));
    const char *limit = dtype < QL_INT8 ? ql_dtype_name(dtype) : "int8";
    char kernel[32], what[96];
    snprintf(kernel, sizeof kernel, "linear %s", ql_dtype_name(dtype));
    bench b = {.kernel = kernel,
               .limit = n_rows == 1 ? "memory" : limit,
               .flops = 2.0 * n_rows * n_out * n_in,
               .bytes = (double)one,
               .threads = n_threads,
               .run = run_linear,
               .context = &l};
    snprintf(what, sizeof what, "%s %d -> %d, %d row%s", model, n_in, n_out, n_rows,
             n_rows > 1 ? "s" : "");
    measure(&b, what);
    free(l.x);
    free(l.y);
    free(l.data);
    free(l.scratch);
}

/* ---- attention at window 1k, in the steady state ---- */

enum { N_INIT = 128, N_LOCAL = 512, P = 64, TOPK = 8, MOST_SPANS = 64, FIRST = 8192 };

typedef struct attention {
    ql_attention a;
    int copies; /* of keys and values, walked through */
    int64_t n_keys;
    size_t copy_bytes;
    char *keys; /* rows [copies, 2, G, n_keys] of D numbers */
    ql_span global[MOST_SPANS], local[MOST_SPANS];
    void *scratch;
} attention;

static void run_attention(void *context, int call) {
    attention *x = context;
    ql_attention a = x->a;
    ql_span global[MOST_SPANS], local[MOST_SPANS];
    size_t shift = (size_t)call % (size_t)x->copies * x->copy_bytes;
    for (int i = 0; i < a.n_global + a.n_local; i++) {
        ql_span *span = i < a.n_global ? &global[i] : &local[i - a.n_global];
        *span = i < a.n_global ? x->global[i] : x->local[i - a.n_global];
        span->k = (const char *)span->k + shift;
        span->v = (const char *)span->v + shift;
    }
    a.global = global;
    a.local = local;
    if (a.n_tokens == 1)
        ql_attend_pieces(&a, x->scratch);
    else
        ql_attend_tiles(&a, x->scratch);
}

/* Adds spans of at most P tokens from position first on; *at counts keys. */
static int add_spans(attention *x, ql_span *spans, int n, int64_t *at, int64_t tokens,
                     int64_t first) {
    size_t row = ql_row_bytes(x->a.dtype, (size_t)x->a.heads.head_dim),
           head = (size_t)x->n_keys * row, values = (size_t)x->a.heads.n_kv_heads * head;
    for (int64_t done = 0; done < tokens; done += P) {
        ql_span *span = &spans[n++];
        span->k = x->keys + (size_t)*at * row;
        span->v = x->keys + values + (size_t)*at * row;
        span->k_stride = span->v_stride = head;
        span->k_dtype = span->v_dtype = x->a.dtype;
        span->n = (int)(tokens - done < P ? tokens - done : P);
        span->first = first + done;
        *at += span->n;
    }
    return n;
}

/* Keys seen by all queries together. */
static double seen_keys(const ql_attention *a) {
    double sum = 0;
    for (int t = 0; t < a->n_tokens; t++)
        sum += (double)(ql_visible_global(a, a->first + t) + N_LOCAL);
    return sum;
}

static void attend(const char *model, ql_heads heads, ql_dtype dtype, int n_tokens, size_t bytes) {
    size_t D = (size_t)heads.head_dim, width = (size_t)heads.n_heads * D;
    /* The remainder: all that lies outside the window of the last query; P / 2 when decoding. */
    int remainder = n_tokens > 1 ? n_tokens : P / 2;
    attention x = {.n_keys = N_INIT + TOPK * P + remainder + N_LOCAL + n_tokens - 1};
    x.a = (ql_attention){.kernels = kernels,
                         .n_threads = n_threads,
                         .heads = heads,
                         .dtype = dtype,
                         .n_tokens = n_tokens,
                         .first = FIRST,
                         .reach = N_LOCAL,
                         .masks_global = true,
                         .global = x.global,
                         .local = x.local};
    size_t rows = 2 * (size_t)heads.n_kv_heads * (size_t)x.n_keys;
    x.copy_bytes = rows * ql_row_bytes(dtype, D);
    x.copies = n_tokens == 1 && bytes > x.copy_bytes ? (int)(bytes / x.copy_bytes) : 1;
    x.keys = kept_rows((size_t)x.copies * rows, D, dtype);
    int64_t at = 0, last = FIRST + n_tokens - 1;
    int n = add_spans(&x, x.global, 0, &at, N_INIT, 0);
    n = add_spans(&x, x.global, n, &at, (int64_t)TOPK * P, 1024);
    x.a.n_global = add_spans(&x, x.global, n, &at, remainder, last - N_LOCAL - remainder + 1);
    x.a.n_local = add_spans(&x, x.local, 0, &at, N_LOCAL + n_tokens - 1, FIRST - N_LOCAL + 1);
    float *q = numbers((size_t)n_tokens * width, QL_F32), *out = memory(n_tokens * width * 4);
    float *angles = numbers((size_t)n_tokens * D, QL_F32);
    x.a.q = q;
    x.a.out = out;
    x.a.cos = x.a.sin = x.a.far_cos = x.a.far_sin = angles;
    x.a.local_mass = memory((size_t)heads.n_heads * (size_t)(N_LOCAL + n_tokens) * sizeof(float));
    x.scratch = memory(n_tokens == 1 ? ql_pieces_scratch(heads, x.n_keys, 2 * MOST_SPANS)
                                     : ql_tiles_scratch(kernels, heads, dtype, n_threads, n_tokens,
                                                        N_INIT + TOPK * P + remainder,
                                                        N_LOCAL + n_tokens - 1, N_LOCAL));
    char kernel[32], what[96];
    snprintf(kernel, sizeof kernel, "attention %s", ql_dtype_name(dtype));
    bench b = {.kernel = kernel,
               .limit = n_tokens == 1     ? "memory"
                        : dtype == QL_F32 ? "float32"
                                          : "bfloat16",
               .flops = 4.0 * (double)width * seen_keys(&x.a),
               .bytes = (double)x.copy_bytes,
               .threads = n_threads,
               .run = run_attention,
               .context = &x};
    snprintf(what, sizeof what, "%s window 1k, %d quer%s, %s", model, n_tokens,
             n_tokens > 1 ? "ies" : "y", x.copies > 1 ? "from memory" : "in cache");
    measure(&b, what);
    free(x.keys);
    free(q);
    free(out);
    free(angles);
    free(x.a.local_mass);
    free(x.scratch);
}

/* ---- ranking passages ---- */

typedef struct ranking {
    ql_memory memory;
    int64_t n_tokens;
    float *queries, *scores;
} ranking;

/* As SmolLM2's retrieval heads and a question of 12 tokens. */
enum { RANK_LAYERS = 3, RANK_KV = 3, RANK_HEADS = 8, RANK_QUERIES = 12, PIECE = 64, RANK_DIM = 64 };

static void run_rank(void *context, int call) {
    (void)call;
    ranking *r = context;
    const ql_head heads[RANK_HEADS] = {{0, 0}, {0, 1}, {0, 2}, {1, 0},
                                       {1, 1}, {1, 2}, {2, 0}, {2, 1}};
    ql_rank(&r->memory, r->scores, heads, RANK_HEADS, r->queries, RANK_QUERIES, 0, r->n_tokens,
            PIECE);
}

static void rank(int64_t n_tokens) {
    ql_heads heads = {RANK_LAYERS, RANK_KV, RANK_KV, RANK_DIM};
    ranking r = {.n_tokens = n_tokens};
    r.memory.heads = heads;
    r.memory.config.kv_dtype = QL_BF16;
    r.memory.kernels = kernels;
    r.memory.n_threads = n_threads;
    ql_kv_init(&r.memory.kv, heads, QL_BF16, 0, PIECE);
    ql_error err = {0};
    if (ql_kv_reserve(&r.memory.kv, n_tokens, &err)) {
        fprintf(stderr, "kernels: %s\n", err.text);
        exit(1);
    }
    float key[RANK_DIM];
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int d = 0; d < RANK_DIM; d++) key[d] = (float)((t * 31 + d * 17) % 64) / 32 - 1;
        for (int i = 0; i < RANK_LAYERS * RANK_KV; i++)
            ql_kv_write(&r.memory.kv, kernels, i / RANK_KV, t, i % RANK_KV, key, key);
    }
    r.queries = numbers((size_t)RANK_HEADS * RANK_QUERIES * RANK_DIM, QL_F32);
    r.scores = numbers((size_t)RANK_HEADS * (size_t)((n_tokens + PIECE - 1) / PIECE), QL_F32);
    double products = (double)n_tokens * RANK_HEADS * RANK_DIM;
    bench b = {"rank",   "float32", 2 * products * RANK_QUERIES, 2 * products, n_threads,
               run_rank, &r};
    char what[96];
    snprintf(what, sizeof what, "%lld keys, %d heads, %d queries", (long long)n_tokens, RANK_HEADS,
             RANK_QUERIES);
    measure(&b, what);
    ql_kv_clear(&r.memory.kv);
    free(r.queries);
    free(r.scores);
}

/* ---- all of it ---- */

static void one_thread_each(size_t bytes) {
    const ql_dtype dtypes[] = {QL_F32, QL_BF16, QL_INT8};
    for (int i = 0; i < 3; i++) {
        few_rows(dtypes[i], 1, 1536, 576, bytes, false);
        few_rows(dtypes[i], 1, 576, 1536, bytes, false);
        few_rows(dtypes[i], 4, 1536, 576, bytes, false);
        few_rows(dtypes[i], 4, 256, 576, 0, false);
        few_rows(dtypes[i], 3, 64, 64, bytes, false);
        few_rows(dtypes[i], 3, 64, 64, 0, false);
        few_rows(dtypes[i], 3, 64, 64, bytes, true);
        few_rows(dtypes[i], 3, 64, 64, 0, true);
    }
    exponentials();
    panels(64);
    panels(576);
    panels(1536);
    panels(4096);
}

static void all_threads(size_t bytes) {
    const ql_dtype dtypes[] = {QL_F32, QL_BF16, QL_INT8, QL_Q4};
    static const int small[][2] = {{576, 576}, {192, 576}, {1536, 576}, {576, 1536}};
    static const int large[][2] = {{4096, 4096}, {1024, 4096}, {14336, 4096}, {4096, 14336}};
    const ql_heads smollm2 = {1, 9, 3, 64}, llama3 = {1, 32, 8, 128};
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++)
            linear("SmolLM2", dtypes[i], small[j][0], small[j][1], 1, bytes);
        for (int j = 0; j < 4; j++)
            linear("SmolLM2", dtypes[i], small[j][0], small[j][1], size == 1 ? 512 : 8, 0);
        for (int j = 0; j < 4; j++)
            linear("Llama-3-8B", dtypes[i], large[j][0] / size, large[j][1] / size,
                   size == 1 ? 512 : 8, 0);
    }
    for (int i = 0; i < 3; i++) {
        attend("SmolLM2", smollm2, dtypes[i], size == 1 ? 512 : 16, 0);
        attend("Llama-3-8B", llama3, dtypes[i], size == 1 ? 512 : 16, 0);
        attend("SmolLM2", smollm2, dtypes[i], 1, bytes);
        attend("Llama-3-8B", llama3, dtypes[i], 1, bytes);
    }
    rank(1000000 / size);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: kernels VARIANT THREADS SECONDS SIZE\n");
        return 2;
    }
    kernels = ql_kernels_get(argv[1]);
    n_threads = atoi(argv[2]);
    seconds = atof(argv[3]);
    size = atoi(argv[4]);
    ql_error err = {0};
    if (!kernels || n_threads < 1 || n_threads > QL_MAX_THREADS || size < 1) {
        fprintf(stderr, "kernels: no such CPU variant, number of threads or size\n");
        return 2;
    }
    if (ql_threads_reserve(n_threads, &err)) {
        fprintf(stderr, "kernels: %s\n", err.text);
        return 1;
    }
    ql_blas_single_threaded();
    size_t bytes = ((size_t)256 << 20) / (size_t)size;
    one_thread_each(bytes);
    all_threads(bytes);
    return 0;
}
