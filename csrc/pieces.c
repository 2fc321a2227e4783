/* pieces.c - attention of one query. */
#include "pieces.h"

#include <math.h>
#include <string.h>

#include "sizes.h"
#include "threads.h"

/* About so many keys in a piece, and runs of pieces for each thread. */
enum { PIECE_KEYS = 192, RUNS = 2 };

static size_t padded(size_t floats) { return (floats + 15) / 16 * 16; }

typedef struct pieces {
    const ql_attention *a;
    int group, n_pieces, n_runs; /* pieces of a head; runs of pieces, of all heads in turn */
    int64_t n_global, n_keys;
    float factor;      /* of scores */
    float *near, *far; /* [H*D] rotated queries */
    float *scores;     /* [H, n_keys] */
    float *out;        /* [H, n_pieces, D] */
    float *top, *sum;  /* [H, n_pieces] */
    int *starts;       /* [n_pieces + 1] spans, global and local counted through */
    int64_t *offsets;  /* [n_pieces + 1] keys */
} pieces;

static ql_span span_at(const ql_attention *a, int s) {
    return s < a->n_global ? a->global[s] : a->local[s - a->n_global];
}

/* How many keys of span s count, the first of them being key `at` of all: the last global span may
 * be seen in part. */
static size_t visible_keys(const pieces *x, int s, int64_t at) {
    int64_t n = span_at(x->a, s).n;
    return (size_t)(s < x->a->n_global ? ql_min(n, x->n_global - at) : n);
}

static const void *keys_of(ql_span span, int g) { return (const char *)span.k + g * span.k_stride; }
static const void *values_of(ql_span span, int g) {
    return (const char *)span.v + g * span.v_stride;
}

/* The query heads of kv head g by a piece. behind: what is met after it, or NULL. */
static void meet_piece(const pieces *x, int g, int piece, const void *behind) {
    const ql_attention *a = x->a;
    const ql_kernels *k = a->kernels;
    int D = a->heads.head_dim, first = x->starts[piece], last = x->starts[piece + 1];
    int64_t begin = x->offsets[piece], count = x->offsets[piece + 1] - begin;
    for (int h0 = g * x->group; h0 < (g + 1) * x->group; h0 += QL_FEW_ROWS) {
        int n_heads = (int)ql_min(QL_FEW_ROWS, (g + 1) * x->group - h0);
        float *scores = x->scores + h0 * x->n_keys + begin,
              *out = x->out + ((size_t)h0 * x->n_pieces + piece) * D;
        size_t row = (size_t)x->n_keys, out_row = (size_t)x->n_pieces * D;
        int64_t at = 0;
        for (int s = first; s < last; s++) {
            ql_span span = span_at(a, s);
            const float *q = (s < a->n_global ? x->far : x->near) + (size_t)h0 * D;
            size_t n = visible_keys(x, s, begin + at);
            const void *next =
                s + 1 < last ? keys_of(span_at(a, s + 1), g) : values_of(span_at(a, first), g);
            ql_dot_rows(k, scores + at, row, q, keys_of(span, g), span.k_dtype, n_heads, n, D,
                        next);
            at += (int64_t)n;
        }
        for (int h = 0; h < n_heads; h++) {
            size_t stat = (size_t)(h0 + h) * x->n_pieces + piece;
            float *weights = scores + h * row;
            x->top[stat] = k->max(weights, (size_t)count);
            x->sum[stat] = k->exp_sum(weights, weights, x->factor, x->top[stat], (size_t)count);
            memset(out + h * out_row, 0, D * sizeof *out);
        }
        at = 0;
        for (int s = first; s < last; s++) {
            ql_span span = span_at(a, s);
            const void *next = s + 1 < last ? values_of(span_at(a, s + 1), g) : behind;
            size_t n = visible_keys(x, s, begin + at);
            ql_mix_rows(k, out, out_row, scores + at, row, values_of(span, g), span.v_dtype,
                        n_heads, n, D, next);
            at += (int64_t)n;
        }
    }
}

/* A thread meets a run of pieces, so that it knows what comes next. */
static void run_task(void *context, int item, int thread) {
    (void)thread;
    const pieces *x = context;
    int all = x->a->heads.n_kv_heads * x->n_pieces, each = all / x->n_runs, more = all % x->n_runs;
    /* longer runs first, so that threads take as many pieces */
    int i = item * each + (int)ql_min(item, more), end = i + each + (item < more);
    for (; i < end; i++) {
        int next = i + 1;
        ql_span span = span_at(x->a, x->starts[next % x->n_pieces]);
        meet_piece(x, i / x->n_pieces, i % x->n_pieces,
                   next < end ? keys_of(span, next / x->n_pieces) : NULL);
    }
}

/* Cuts the spans into pieces of about PIECE_KEYS keys, never inside a span. */
static void cut_pieces(pieces *x) {
    const ql_attention *a = x->a;
    int64_t offset = 0, since = 0;
    x->n_pieces = 0;
    x->starts[0] = 0;
    x->offsets[0] = 0;
    for (int s = 0; s < a->n_global + a->n_local; s++) {
        int64_t n = (int64_t)visible_keys(x, s, offset);
        offset += n;
        since += n;
        bool last = s + 1 == a->n_global + a->n_local;
        if (since < PIECE_KEYS && !last) continue;
        x->n_pieces++;
        x->starts[x->n_pieces] = s + 1;
        x->offsets[x->n_pieces] = offset;
        since = 0;
    }
}

static void join_pieces(const pieces *x) {
    const ql_attention *a = x->a;
    const ql_kernels *k = a->kernels;
    int D = a->heads.head_dim;
    int64_t n_local = x->n_keys - x->n_global;
    for (int h = 0; h < a->heads.n_heads; h++) {
        float *out = a->out + (size_t)h * D, *sums = x->sum + (size_t)h * x->n_pieces,
              *tops = x->top + (size_t)h * x->n_pieces;
        float top = k->max(tops, (size_t)x->n_pieces), total = 0;
        /* now the pieces' shares of a common scale */
        k->exp_sum(tops, tops, x->factor, top, (size_t)x->n_pieces);
        for (int i = 0; i < x->n_pieces; i++) total += tops[i] * sums[i];
        memset(out, 0, D * sizeof *out);
        for (int i = 0; i < x->n_pieces; i++) {
            float share = tops[i] / total;
            k->panels_f32->add_scaled(out, x->out + ((size_t)h * x->n_pieces + i) * D, share, D);
            int64_t from = ql_max(x->n_global, x->offsets[i]), to = x->offsets[i + 1];
            if (!a->local_mass || from >= to) continue;
            k->scale(a->local_mass + h * n_local + (from - x->n_global),
                     x->scores + h * x->n_keys + from, share, (size_t)(to - from));
        }
    }
}

/* Most pieces that n_keys keys in n_spans spans can be cut into. */
static size_t most_pieces(int64_t n_keys, int n_spans) {
    return (size_t)ql_min(n_spans, n_keys / PIECE_KEYS + 1) + 1;
}

size_t ql_pieces_scratch(ql_heads heads, int64_t n_keys, int n_spans) {
    size_t n = most_pieces(n_keys, n_spans), H = heads.n_heads, D = heads.head_dim;
    size_t floats = 2 * padded(H * D) + padded(H * (size_t)n_keys) + padded(H * n * D) +
                    2 * padded(H * n) + padded(3 * (n + 1)) + 64;
    return floats * sizeof(float);
}

void ql_attend_pieces(const ql_attention *a, void *scratch) {
    int64_t n_global = ql_count_keys(a->global, a->n_global),
            n_local = ql_count_keys(a->local, a->n_local);
    int H = a->heads.n_heads, D = a->heads.head_dim;
    pieces x = {.a = a,
                .group = H / a->heads.n_kv_heads,
                .n_global = ql_min(n_global, ql_visible_global(a, a->first))};
    x.n_keys = x.n_global + n_local;
    x.factor = 1 / sqrtf((float)D);
    size_t most = most_pieces(n_global + n_local, a->n_global + a->n_local);
    x.near = scratch;
    x.far = x.near + padded((size_t)H * D);
    x.scores = x.far + padded((size_t)H * D);
    x.out = x.scores + padded((size_t)H * x.n_keys);
    x.top = x.out + padded((size_t)H * most * D);
    x.sum = x.top + padded((size_t)H * most);
    x.offsets = (int64_t *)(x.sum + padded((size_t)H * most));
    x.starts = (int *)(x.offsets + most + 1);
    for (int h = 0; h < H; h++) {
        a->kernels->rope(x.near + (size_t)h * D, a->q + (size_t)h * D, a->cos, a->sin, D);
        if (n_global)
            a->kernels->rope(x.far + (size_t)h * D, a->q + (size_t)h * D, a->far_cos, a->far_sin,
                             D);
    }
    cut_pieces(&x);
    x.n_runs = (int)ql_min(a->heads.n_kv_heads * x.n_pieces, RUNS * a->n_threads);
    ql_parallel(a->n_threads, x.n_runs, run_task, &x);
    join_pieces(&x);
}
