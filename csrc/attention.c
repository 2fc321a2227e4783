#include "attention.h"

#include <math.h>
#include <string.h>

#include "blas.h"
#include "threads.h"

/* A tile is one kv head by some consecutive queries; the query heads that share the kv head are
 * stacked as rows of one matrix, so that a product packs the keys once for all of them. Tiles
 * depend on the chunk alone, never on the number of threads. */
enum { TILE_ROWS = 192, MOST_TILE_TOKENS = 128, FEWEST_TILE_TOKENS = 8, PIECE_KEYS = 384 };
static const size_t TILE_BYTES = (size_t)32 << 20, GATHER_BYTES = (size_t)256 << 20;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static size_t padded(size_t floats) { return (floats + 15) / 16 * 16; }

typedef struct plan {          /* sizes of one call, in floats where not said otherwise */
    int group;                 /* query heads per kv head */
    int64_t n_global, n_local; /* keys */
    int tile_tokens, n_tiles;
    int heads_at_once; /* kv heads whose keys and values are gathered together */
    int64_t band;      /* most local keys of a tile */
    size_t gathered;   /* keys and values of one kv head */
    size_t mass;       /* [n_tiles, band] of one query head */
    size_t per_thread;
} plan;

static plan make_plan(ql_heads heads, int n_tokens, int64_t n_global, int64_t n_local,
                      int64_t reach) {
    plan p = {.group = heads.n_heads / heads.n_kv_heads, .n_global = n_global, .n_local = n_local};
    int tile = (int)max64(16, min64(MOST_TILE_TOKENS, TILE_ROWS / p.group));
    while (tile > FEWEST_TILE_TOKENS &&
           sizeof(float) * p.group * tile * (size_t)(n_global + n_local) > TILE_BYTES)
        tile /= 2;
    p.tile_tokens = (int)min64(tile, n_tokens);
    p.n_tiles = (n_tokens + p.tile_tokens - 1) / p.tile_tokens;
    p.band = reach > n_local ? n_local : min64(n_local, p.tile_tokens + reach - 1);
    p.gathered = 2 * padded((size_t)(n_global + n_local) * heads.head_dim);
    p.heads_at_once = (int)max64(
        1, min64(heads.n_kv_heads, (int64_t)(GATHER_BYTES / sizeof(float) / p.gathered)));
    p.mass = (size_t)p.n_tiles * p.band;
    size_t rows = (size_t)p.group * p.tile_tokens;
    p.per_thread = 3 * padded(rows * heads.head_dim) + padded(rows * (size_t)(n_global + p.band));
    return p;
}

/* ---- many queries: products by BLAS ---- */

typedef struct tiles {
    const ql_attention *a;
    plan plan;
    int g0;          /* first kv head gathered */
    float *gathered; /* [heads_at_once, 2 (keys, values), global then local keys, D] */
    float *mass;     /* [H, n_tiles, band] */
    float *threads;  /* [n_threads, per_thread] */
} tiles;

static float *keys_of(const tiles *x, int g) {
    return x->gathered + (size_t)(g - x->g0) * x->plan.gathered;
}
static float *values_of(const tiles *x, int g) { return keys_of(x, g) + x->plan.gathered / 2; }

static void gather_task(void *context, int item, int thread) {
    (void)thread;
    const tiles *x = context;
    const ql_attention *a = x->a;
    int n_spans = a->n_global + a->n_local, g = x->g0 + item / n_spans, s = item % n_spans,
        D = a->heads.head_dim;
    const ql_span *span = s < a->n_global ? &a->global[s] : &a->local[s - a->n_global];
    size_t at = s < a->n_global
                    ? 0
                    : (size_t)x->plan.n_global; /* first key of the span among the gathered */
    for (int i = s < a->n_global ? 0 : a->n_global; i < s; i++)
        at += i < a->n_global ? a->global[i].n : a->local[i - a->n_global].n;
    size_t item_bytes = ql_kv_item(a->dtype), n = (size_t)span->n * D;
    ql_get_row(a->kernels, keys_of(x, g) + at * D,
               (const char *)span->k + g * span->k_stride * item_bytes, a->dtype, n);
    ql_get_row(a->kernels, values_of(x, g) + at * D,
               (const char *)span->v + g * span->v_stride * item_bytes, a->dtype, n);
}

/* How many of the global keys the query at position p sees: a prefix, by the order of the spans. */
static int64_t visible_global(const ql_attention *a, int64_t p) {
    int64_t n = 0;
    for (int s = 0; s < a->n_global; s++) {
        const ql_span *span = &a->global[s];
        int64_t seen =
            a->masks_global ? max64(0, min64(span->n, p - a->reach - span->first + 1)) : span->n;
        n += seen;
        if (seen < span->n) break;
    }
    return n;
}

/* scores [n_global + n_band] of one query become probabilities; keys it does not see get 0. */
static void softmax_row(const ql_attention *a, float *scores, int64_t n_global, int64_t n_band,
                        int64_t band_first, int64_t p) {
    const ql_kernels *kernels = a->kernels;
    int64_t seen = min64(n_global, visible_global(a, p));
    int64_t from = max64(0, a->reach > p ? 0 : p - a->reach + 1 - band_first),
            to = p + 1 - band_first;
    float *local = scores + n_global;
    float far = kernels->max(scores, (size_t)seen),
          near = kernels->max(local + from, (size_t)(to - from));
    float top = far > near ? far : near;
    float sum = kernels->exp_sum(scores, top, (size_t)seen) +
                kernels->exp_sum(local + from, top, (size_t)(to - from));
    kernels->scale(scores, 1 / sum, (size_t)seen);
    kernels->scale(local + from, 1 / sum, (size_t)(to - from));
    memset(scores + seen, 0, (size_t)(n_global - seen) * sizeof *scores);
    memset(local, 0, (size_t)from * sizeof *local);
    memset(local + to, 0, (size_t)(n_band - to) * sizeof *local);
}

static void tile_task(void *context, int item, int thread) {
    const tiles *x = context;
    const ql_attention *a = x->a;
    const plan *p = &x->plan;
    int g = x->g0 + item / p->n_tiles, tile = item % p->n_tiles, D = a->heads.head_dim,
        group = p->group;
    int t0 = tile * p->tile_tokens, n = (int)min64(p->tile_tokens, a->n_tokens - t0),
        rows = group * n;
    size_t row = (size_t)a->heads.n_heads * D;
    float *near = x->threads + (size_t)thread * p->per_thread,
          *far = near + padded((size_t)rows * D);
    float *out = far + padded((size_t)rows * D), *scores = out + padded((size_t)rows * D);
    for (int h = 0; h < group; h++) {
        for (int t = 0; t < n; t++) {
            const float *q = a->q + (t0 + t) * row + (size_t)(g * group + h) * D;
            size_t at = (size_t)(h * n + t) * D, angle = (size_t)(t0 + t) * (D / 2);
            a->kernels->rope(near + at, q, a->cos + angle, a->sin + angle, D);
            if (p->n_global) a->kernels->rope(far + at, q, a->far_cos, a->far_sin, D);
        }
    }
    int64_t last = a->first + t0 + n - 1, local_first = a->local[0].first;
    int64_t n_global = visible_global(a, last);
    int64_t band_first =
        a->reach > a->first + t0 ? local_first : max64(local_first, a->first + t0 - a->reach + 1);
    int64_t n_band = last + 1 - band_first, skip = p->n_global + band_first - local_first;
    size_t columns = (size_t)(n_global + n_band);
    float scale = 1 / sqrtf((float)D);
    if (n_global)
        ql_sgemm_nt(scores, columns, far, D, keys_of(x, g), D, rows, (int)n_global, D, scale, 0);
    ql_sgemm_nt(scores + n_global, columns, near, D, keys_of(x, g) + skip * D, D, rows, (int)n_band,
                D, scale, 0);
    for (int i = 0; i < rows; i++)
        softmax_row(a, scores + i * columns, n_global, n_band, band_first, a->first + t0 + i % n);
    if (n_global)
        ql_sgemm_nn(out, D, scores, columns, values_of(x, g), D, rows, D, (int)n_global, 1, 0);
    ql_sgemm_nn(out, D, scores + n_global, columns, values_of(x, g) + skip * D, D, rows, D,
                (int)n_band, 1, n_global ? 1 : 0);
    for (int i = 0; i < rows; i++)
        memcpy(a->out + (t0 + i % n) * row + (size_t)(g * group + i / n) * D, out + (size_t)i * D,
               D * sizeof *out);
    if (!a->local_mass) return;
    for (int h = 0; h < group; h++) {
        float *mass = x->mass + (size_t)(g * group + h) * p->mass + (size_t)tile * p->band;
        memset(mass, 0, (size_t)n_band * sizeof *mass);
        for (int t = 0; t < n; t++)
            a->kernels->add(mass, scores + (size_t)(h * n + t) * columns + n_global,
                            (size_t)n_band);
    }
}

/* Adds the tiles' sums in a fixed order: results must not depend on which thread came first. */
static void sum_mass(const tiles *x) {
    const ql_attention *a = x->a;
    const plan *p = &x->plan;
    int64_t local_first = a->local[0].first;
    memset(a->local_mass, 0, (size_t)a->heads.n_heads * p->n_local * sizeof *a->local_mass);
    for (int h = 0; h < a->heads.n_heads; h++) {
        for (int tile = 0; tile < p->n_tiles; tile++) {
            int64_t t0 = a->first + (int64_t)tile * p->tile_tokens,
                    end = min64(t0 + p->tile_tokens, a->first + a->n_tokens);
            int64_t from = a->reach > t0 ? local_first : max64(local_first, t0 - a->reach + 1);
            a->kernels->add(a->local_mass + h * p->n_local + (from - local_first),
                            x->mass + h * p->mass + (size_t)tile * p->band, (size_t)(end - from));
        }
    }
}

static void attend_tiles(const ql_attention *a, plan p, float *scratch) {
    tiles x = {.a = a, .plan = p, .gathered = scratch};
    x.mass = x.gathered + p.heads_at_once * p.gathered;
    x.threads = x.mass + padded((size_t)a->heads.n_heads * p.mass);
    for (x.g0 = 0; x.g0 < a->heads.n_kv_heads; x.g0 += p.heads_at_once) {
        int n = (int)min64(p.heads_at_once, a->heads.n_kv_heads - x.g0);
        ql_parallel(a->n_threads, n * (a->n_global + a->n_local), gather_task, &x);
        ql_parallel(a->n_threads, n * p.n_tiles, tile_task, &x);
    }
    if (a->local_mass) sum_mass(&x);
}

/* ---- one query: keys and values where they lie, in pieces that are joined at the end ---- */

typedef struct pieces {
    const ql_attention *a;
    int group, n_pieces;
    int64_t n_global, n_keys;
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

static void piece_task(void *context, int item, int thread) {
    (void)thread;
    const pieces *x = context;
    const ql_attention *a = x->a;
    const ql_kernels *k = a->kernels;
    int g = item / x->n_pieces, piece = item % x->n_pieces, D = a->heads.head_dim;
    int64_t begin = x->offsets[piece], count = x->offsets[piece + 1] - begin;
    for (int h0 = g * x->group; h0 < (g + 1) * x->group; h0 += QL_FEW_ROWS) {
        int n_heads = (int)min64(QL_FEW_ROWS, (g + 1) * x->group - h0);
        float *scores = x->scores + h0 * x->n_keys + begin,
              *out = x->out + ((size_t)h0 * x->n_pieces + piece) * D;
        size_t row = (size_t)x->n_keys, out_row = (size_t)x->n_pieces * D;
        int64_t at = 0;
        for (int s = x->starts[piece]; s < x->starts[piece + 1]; s++) {
            ql_span span = span_at(a, s);
            const float *q = (s < a->n_global ? x->far : x->near) + (size_t)h0 * D;
            size_t offset = g * span.k_stride, n = (size_t)min64(span.n, count - at);
            if (a->dtype == QL_F32)
                k->dots_f32(scores + at, row, q, D, (const float *)span.k + offset, D, n_heads, n,
                            D);
            else
                k->dots_bf16(scores + at, row, q, D, (const uint16_t *)span.k + offset, D, n_heads,
                             n, D);
            at += (int64_t)n;
        }
        for (int h = 0; h < n_heads; h++) {
            size_t stat = (size_t)(h0 + h) * x->n_pieces + piece;
            k->scale(scores + h * row, 1 / sqrtf((float)D), (size_t)count);
            x->top[stat] = k->max(scores + h * row, (size_t)count);
            x->sum[stat] = k->exp_sum(scores + h * row, x->top[stat], (size_t)count);
            memset(out + h * out_row, 0, D * sizeof *out);
        }
        at = 0;
        for (int s = x->starts[piece]; s < x->starts[piece + 1]; s++) {
            ql_span span = span_at(a, s);
            size_t offset = g * span.v_stride, n = (size_t)min64(span.n, count - at);
            if (a->dtype == QL_F32)
                k->mix_f32(out, out_row, scores + at, row, (const float *)span.v + offset, D,
                           n_heads, n, D);
            else
                k->mix_bf16(out, out_row, scores + at, row, (const uint16_t *)span.v + offset, D,
                            n_heads, n, D);
            at += (int64_t)n;
        }
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
        int64_t n = span_at(a, s).n;
        if (s < a->n_global) n = min64(n, x->n_global - offset);
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
        for (int i = 0; i < x->n_pieces; i++) {
            k->exp_sum(&tops[i], top, 1); /* now the piece's share of the common scale */
            total += tops[i] * sums[i];
        }
        memset(out, 0, D * sizeof *out);
        for (int i = 0; i < x->n_pieces; i++) {
            float share = tops[i] / total, *part = x->out + ((size_t)h * x->n_pieces + i) * D;
            k->scale(part, share, D);
            k->add(out, part, D);
            int64_t from = max64(x->n_global, x->offsets[i]), to = x->offsets[i + 1];
            if (!a->local_mass || from >= to) continue;
            float *mass = a->local_mass + h * n_local + (from - x->n_global);
            memcpy(mass, x->scores + h * x->n_keys + from, (size_t)(to - from) * sizeof *mass);
            k->scale(mass, share, (size_t)(to - from));
        }
    }
}

/* Most pieces that n_keys keys in n_spans spans can be cut into. */
static size_t most_pieces(int64_t n_keys, int n_spans) {
    return (size_t)min64(n_spans, n_keys / PIECE_KEYS + 1) + 1;
}

static size_t pieces_floats(ql_heads heads, int64_t n_keys, int n_spans) {
    size_t n = most_pieces(n_keys, n_spans), H = heads.n_heads, D = heads.head_dim;
    return 2 * padded(H * D) + padded(H * (size_t)n_keys) + padded(H * n * D) + 2 * padded(H * n) +
           padded(3 * (n + 1)) + 64;
}

static void attend_pieces(const ql_attention *a, int64_t n_global, int64_t n_local,
                          float *scratch) {
    int H = a->heads.n_heads, D = a->heads.head_dim;
    pieces x = {.a = a,
                .group = H / a->heads.n_kv_heads,
                .n_global = min64(n_global, visible_global(a, a->first))};
    x.n_keys = x.n_global + n_local;
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
    ql_parallel(a->n_threads, a->heads.n_kv_heads * x.n_pieces, piece_task, &x);
    join_pieces(&x);
}

static int64_t count_keys(const ql_span *spans, int n) {
    int64_t keys = 0;
    for (int i = 0; i < n; i++) keys += spans[i].n;
    return keys;
}

size_t ql_attention_scratch(ql_heads heads, int n_threads, int n_tokens, int64_t n_global,
                            int64_t n_local, int64_t reach, int n_spans) {
    plan p = make_plan(heads, n_tokens, n_global, n_local, reach);
    size_t many =
        p.heads_at_once * p.gathered + padded(heads.n_heads * p.mass) + n_threads * p.per_thread;
    size_t one = pieces_floats(heads, n_global + n_local, n_spans);
    return sizeof(float) * (many > one ? many : one);
}

void ql_attend(const ql_attention *a, void *scratch) {
    int64_t n_global = count_keys(a->global, a->n_global),
            n_local = count_keys(a->local, a->n_local);
    if (a->n_tokens == 1)
        attend_pieces(a, n_global, n_local, scratch);
    else
        attend_tiles(a, make_plan(a->heads, a->n_tokens, n_global, n_local, a->reach), scratch);
}
