#include "tiles.h"

#include <math.h>
#include <string.h>

#include "blas.h"
#include "threads.h"

enum { TILE_ROWS = 192, MOST_TILE_TOKENS = 128, FEWEST_TILE_TOKENS = 8 };
static const size_t TILE_BYTES = (size_t)32 << 20, GATHER_BYTES = (size_t)256 << 20;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }
static size_t panels_of(int64_t columns) { return (size_t)(columns + QL_PANEL - 1) / QL_PANEL; }

/* ---- sizes and places ---- */

/* The global or the local keys of one kv head, as they are multiplied. Bytes from the head's start:
 * rows are as they were read, panels only there with bfloat16 products. */
typedef struct keys_plan {
    int64_t n;
    size_t key_rows, value_rows;     /* [n, D] */
    size_t key_panels, value_panels; /* [n / QL_PANEL] of [D]; [D / QL_PANEL] of [n] */
} keys_plan;

typedef struct plan {
    int group; /* query heads per kv head */
    int D;
    bool panels;
    int item; /* bytes of a number that is multiplied */
    keys_plan global, local;
    int tile_tokens, n_tiles;
    int heads_at_once; /* kv heads whose keys and values are gathered together */
    int64_t band;      /* most local keys of a tile */
    size_t gathered;   /* bytes of one kv head */
    size_t mass;       /* floats [n_tiles, band] of one query head */
    size_t queries;    /* bytes of a tile's queries or outputs */
    size_t scores;     /* bytes of a tile's scores */
    size_t per_thread; /* bytes */
} plan;

/* Bytes of one panel of k numbers a column. */
static size_t panel_bytes(int64_t k) { return (size_t)(k + 1) / 2 * QL_PANEL * 4; }

static size_t plan_keys(keys_plan *keys, const plan *p, int64_t n, size_t at) {
    size_t rows = aligned((size_t)n * p->D * p->item);
    keys->n = n;
    keys->key_rows = at;
    keys->value_rows = at + rows;
    keys->key_panels = at + 2 * rows;
    if (!p->panels) return at + 2 * rows;
    keys->value_panels = keys->key_panels + panels_of(n) * panel_bytes(p->D);
    return keys->value_panels + panels_of(p->D) * panel_bytes(n);
}

static plan make_plan(const ql_kernels *kernels, ql_heads heads, ql_dtype dtype, int n_tokens,
                      int64_t n_global, int64_t n_local, int64_t reach) {
    plan p = {.group = heads.n_heads / heads.n_kv_heads, .D = heads.head_dim};
    p.panels = dtype == QL_BF16 && kernels->panels;
    p.item = p.panels ? sizeof(uint16_t) : sizeof(float);
    int tile = (int)max64(16, min64(MOST_TILE_TOKENS, TILE_ROWS / p.group));
    while (tile > FEWEST_TILE_TOKENS &&
           sizeof(float) * p.group * tile * (size_t)(n_global + n_local) > TILE_BYTES)
        tile /= 2;
    p.tile_tokens = (int)min64(tile, n_tokens);
    p.n_tiles = (n_tokens + p.tile_tokens - 1) / p.tile_tokens;
    p.band = reach > n_local ? n_local : min64(n_local, p.tile_tokens + reach - 1 + QL_PANEL);
    p.gathered = plan_keys(&p.local, &p, n_local, plan_keys(&p.global, &p, n_global, 0));
    p.heads_at_once =
        (int)max64(1, min64(heads.n_kv_heads, (int64_t)(GATHER_BYTES / (p.gathered + 1))));
    p.mass = (size_t)p.n_tiles * p.band;
    size_t rows = (size_t)p.group * p.tile_tokens;
    p.queries = aligned(rows * p.D * sizeof(float));
    p.scores = aligned(rows * (size_t)(n_global + p.band + 2) * sizeof(float));
    p.per_thread = 3 * p.queries + p.scores;
    return p;
}

typedef struct tiles {
    const ql_attention *a;
    plan plan;
    int g0;         /* first kv head gathered */
    char *gathered; /* [heads_at_once] of plan.gathered bytes */
    float *mass;    /* [H, n_tiles, band] */
    char *threads;  /* [n_threads] of plan.per_thread bytes */
} tiles;

static char *head_at(const tiles *x, int g) { return x->gathered + (g - x->g0) * x->plan.gathered; }

/* ---- gather: keys and values of a kv head side by side ---- */

static void copy_rows(const tiles *x, void *to, const void *from, size_t n) {
    if (x->plan.panels)
        memcpy(to, from, n * sizeof(uint16_t));
    else
        ql_get_row(x->a->kernels, to, from, x->a->dtype, n);
}

static void gather_task(void *context, int item, int thread) {
    (void)thread;
    const tiles *x = context;
    const ql_attention *a = x->a;
    int n_spans = a->n_global + a->n_local, g = x->g0 + item / n_spans, s = item % n_spans;
    bool global = s < a->n_global;
    const ql_span *spans = global ? a->global : a->local;
    const keys_plan *keys = global ? &x->plan.global : &x->plan.local;
    if (!global) s -= a->n_global;
    const ql_span *span = &spans[s];
    size_t at = (size_t)ql_count_keys(spans, s) * x->plan.D * x->plan.item;
    size_t stored = ql_kv_item(a->dtype), n = (size_t)span->n * x->plan.D;
    char *head = head_at(x, g);
    copy_rows(x, head + keys->key_rows + at, (const char *)span->k + g * span->k_stride * stored,
              n);
    copy_rows(x, head + keys->value_rows + at, (const char *)span->v + g * span->v_stride * stored,
              n);
}

/* Panels of the gathered keys, and after them those of the values. */
static void pack_task(void *context, int item, int thread) {
    (void)thread;
    const tiles *x = context;
    const ql_panels *panels = x->a->kernels->panels;
    int D = x->plan.D;
    size_t wide = panels_of(D), n_global = panels_of(x->plan.global.n),
           n_local = panels_of(x->plan.local.n), n_items = n_global + n_local + 2 * wide;
    char *head = head_at(x, x->g0 + (int)(item / n_items));
    size_t i = item % n_items;
    bool values = i >= n_global + n_local;
    if (values) i -= n_global + n_local;
    size_t first = values ? wide : n_global; /* panels of the global keys come first */
    const keys_plan *keys = i < first ? &x->plan.global : &x->plan.local;
    if (i >= first) i -= first;
    int64_t at = (int64_t)i * QL_PANEL, left = (values ? D : keys->n) - at;
    int n = (int)min64(left, QL_PANEL);
    if (values)
        panels->pack_columns((uint16_t *)(head + keys->value_panels + i * panel_bytes(keys->n)),
                             (const uint16_t *)(head + keys->value_rows) + at, D, n,
                             (size_t)keys->n);
    else
        panels->pack_rows((uint16_t *)(head + keys->key_panels + i * panel_bytes(D)),
                          (const uint16_t *)(head + keys->key_rows) + at * D, D, n, D);
}

/* ---- the two products of a tile ---- */

/* scores [rows, n] (stride) = queries [rows, D] times the keys from ... from + n - 1; with panels
 * from is a multiple of QL_PANEL. */
static void multiply_keys(const tiles *x, float *scores, size_t stride, const void *queries,
                          const keys_plan *keys, const char *head, int rows, int64_t from,
                          int64_t n) {
    const ql_panels *panels = x->a->kernels->panels;
    int D = x->plan.D;
    float scale = 1 / sqrtf((float)D);
    if (!x->plan.panels) {
        const float *k = (const float *)(head + keys->key_rows) + from * D;
        ql_sgemm_nt(scores, stride, queries, D, k, D, rows, (int)n, D, scale, 0);
        return;
    }
    for (int64_t at = 0; at < n; at += QL_PANEL) {
        const char *panel = head + keys->key_panels + (from + at) / QL_PANEL * panel_bytes(D);
        panels->multiply(scores + at, stride, queries, D, (const uint16_t *)panel, rows,
                         (int)min64(n - at, QL_PANEL), D, scale, false);
    }
}

/* out [rows, D] (+)= weights [rows, n] (stride floats apart) times those keys' values. */
static void multiply_values(const tiles *x, float *out, const float *weights, size_t stride,
                            const keys_plan *keys, const char *head, int rows, int64_t from,
                            int64_t n, bool accumulate) {
    const ql_panels *panels = x->a->kernels->panels;
    int D = x->plan.D;
    if (!x->plan.panels) {
        const float *v = (const float *)(head + keys->value_rows) + from * D;
        ql_sgemm_nn(out, D, weights, stride, v, D, rows, D, (int)n, 1, accumulate ? 1 : 0);
        return;
    }
    for (int at = 0; at < D; at += QL_PANEL) {
        const char *panel =
            head + keys->value_panels + at / QL_PANEL * panel_bytes(keys->n) + panel_bytes(from);
        panels->multiply(out + at, D, (const uint16_t *)weights, 2 * stride,
                         (const uint16_t *)panel, rows, (int)min64(D - at, QL_PANEL), (size_t)n, 1,
                         accumulate);
    }
}

/* ---- a tile ---- */

typedef struct tile { /* what one tile sees; scores are [rows, columns]: global, local keys */
    int g, t0, n, rows;
    int64_t n_global, n_band, band_first; /* keys; position of the first local one */
    int64_t local_at;                     /* column of the first local key: even */
    size_t columns;
} tile;

static tile cut_tile(const tiles *x, int item) {
    const ql_attention *a = x->a;
    const plan *p = &x->plan;
    tile t = {.g = x->g0 + item / p->n_tiles, .t0 = item % p->n_tiles * p->tile_tokens};
    t.n = (int)min64(p->tile_tokens, a->n_tokens - t.t0);
    t.rows = p->group * t.n;
    int64_t begin = a->first + t.t0, last = begin + t.n - 1, local_first = a->local[0].first;
    t.n_global = ql_visible_global(a, last);
    int64_t skip = a->reach > begin ? 0 : max64(0, begin - a->reach + 1 - local_first);
    if (p->panels) skip -= skip % QL_PANEL; /* whole panels; the softmax passes the others over */
    t.band_first = local_first + skip;
    t.n_band = last + 1 - t.band_first;
    t.local_at = (t.n_global + 1) / 2 * 2;
    t.columns = (size_t)(t.local_at + (t.n_band + 1) / 2 * 2);
    return t;
}

/* Queries of a tile at their own positions (near) and at the far distance: [rows, D]. */
static void rotate_queries(const tiles *x, const tile *t, void *near, void *far) {
    const ql_attention *a = x->a;
    size_t D = x->plan.D, item = x->plan.item;
    float rotated[QL_MAX_HEAD_DIM];
    for (int i = 0; i < t->rows; i++) {
        int token = t->t0 + i % t->n, h = t->g * x->plan.group + i / t->n;
        const float *q = a->q + ((size_t)token * a->heads.n_heads + h) * D;
        const float *cos = a->cos + token * (D / 2), *sin = a->sin + token * (D / 2);
        for (int which = 0; which < (t->n_global ? 2 : 1); which++) {
            char *to = (char *)(which ? far : near) + i * D * item;
            a->kernels->rope(rotated, q, which ? a->far_cos : cos, which ? a->far_sin : sin, D);
            if (x->plan.panels)
                a->kernels->pack_bf16((uint16_t *)to, rotated, D);
            else
                memcpy(to, rotated, D * sizeof *rotated);
        }
    }
}

/* The scores of the query at position p become probabilities; keys that it does not see get 0. */
static void softmax_row(const tiles *x, const tile *t, float *scores, int64_t p) {
    const ql_attention *a = x->a;
    const ql_kernels *kernels = a->kernels;
    int64_t seen = min64(t->n_global, ql_visible_global(a, p));
    int64_t from = a->reach > p ? 0 : max64(0, p - a->reach + 1 - t->band_first),
            to = p + 1 - t->band_first;
    float *local = scores + t->local_at;
    float far = kernels->max(scores, (size_t)seen),
          near = kernels->max(local + from, (size_t)(to - from));
    float top = far > near ? far : near;
    float sum = kernels->exp_sum(scores, top, (size_t)seen) +
                kernels->exp_sum(local + from, top, (size_t)(to - from));
    kernels->scale(scores, 1 / sum, (size_t)seen);
    kernels->scale(local + from, 1 / sum, (size_t)(to - from));
    memset(scores + seen, 0, (size_t)(t->local_at - seen) * sizeof *scores);
    memset(local, 0, (size_t)from * sizeof *local);
    memset(local + to, 0, (t->columns - (size_t)(t->local_at + to)) * sizeof *local);
}

static void softmax_tile(const tiles *x, const tile *t, float *scores) {
    const ql_attention *a = x->a;
    const plan *p = &x->plan;
    for (int h = 0; h < p->group; h++) {
        float *mass = x->mass + (size_t)(t->g * p->group + h) * p->mass +
                      (size_t)(t->t0 / p->tile_tokens) * p->band;
        if (a->local_mass) memset(mass, 0, (size_t)t->n_band * sizeof *mass);
        for (int i = 0; i < t->n; i++) {
            float *row = scores + (size_t)(h * t->n + i) * t->columns;
            softmax_row(x, t, row, a->first + t->t0 + i);
            if (a->local_mass) a->kernels->add(mass, row + t->local_at, (size_t)t->n_band);
            /* In place: a vector is read before its half of the bytes is written. */
            if (p->panels) a->kernels->pack_bf16((uint16_t *)row, row, t->columns);
        }
    }
}

static void tile_task(void *context, int item, int thread) {
    const tiles *x = context;
    const ql_attention *a = x->a;
    const plan *p = &x->plan;
    tile t = cut_tile(x, item);
    char *near = x->threads + thread * p->per_thread, *far = near + p->queries;
    float *out = (float *)(far + p->queries), *scores = (float *)(far + 2 * p->queries);
    const char *head = head_at(x, t.g);
    int64_t skip = t.band_first - a->local[0].first;
    rotate_queries(x, &t, near, far);
    if (t.n_global)
        multiply_keys(x, scores, t.columns, far, &p->global, head, t.rows, 0, t.n_global);
    multiply_keys(x, scores + t.local_at, t.columns, near, &p->local, head, t.rows, skip, t.n_band);
    softmax_tile(x, &t, scores);
    const float *local = p->panels ? scores + t.local_at / 2 : scores + t.local_at;
    if (t.n_global)
        multiply_values(x, out, scores, t.columns, &p->global, head, t.rows, 0, t.n_global, false);
    multiply_values(x, out, local, t.columns, &p->local, head, t.rows, skip, t.n_band,
                    t.n_global > 0);
    for (int i = 0; i < t.rows; i++) {
        size_t row = (size_t)(t.t0 + i % t.n) * a->heads.n_heads + t.g * p->group + i / t.n;
        memcpy(a->out + row * p->D, out + (size_t)i * p->D, p->D * sizeof *out);
    }
}

/* Adds the tiles' sums in a fixed order: results must not depend on which thread came first. */
static void sum_mass(tiles *x) {
    const ql_attention *a = x->a;
    const plan *p = &x->plan;
    memset(a->local_mass, 0, (size_t)a->heads.n_heads * p->local.n * sizeof *a->local_mass);
    x->g0 = 0;
    for (int i = 0; i < p->n_tiles; i++) {
        tile t = cut_tile(x, i);
        for (int h = 0; h < a->heads.n_heads; h++)
            a->kernels->add(a->local_mass + h * p->local.n + (t.band_first - a->local[0].first),
                            x->mass + h * p->mass + (size_t)i * p->band, (size_t)t.n_band);
    }
}

/* ---- all of it ---- */

static plan plan_of(const ql_attention *a) {
    return make_plan(a->kernels, a->heads, a->dtype, a->n_tokens,
                     ql_count_keys(a->global, a->n_global), ql_count_keys(a->local, a->n_local),
                     a->reach);
}

size_t ql_tiles_scratch(const ql_kernels *kernels, ql_heads heads, ql_dtype dtype, int n_threads,
                        int n_tokens, int64_t n_global, int64_t n_local, int64_t reach) {
    plan p = make_plan(kernels, heads, dtype, n_tokens, n_global, n_local, reach);
    return p.heads_at_once * p.gathered + aligned(heads.n_heads * p.mass * sizeof(float)) +
           n_threads * p.per_thread;
}

void ql_attend_tiles(const ql_attention *a, void *scratch) {
    tiles x = {.a = a, .plan = plan_of(a), .gathered = scratch};
    const plan *p = &x.plan;
    x.mass = (float *)(x.gathered + p->heads_at_once * p->gathered);
    x.threads = (char *)x.mass + aligned(a->heads.n_heads * p->mass * sizeof(float));
    int packs = (int)(panels_of(p->global.n) + panels_of(p->local.n) + 2 * panels_of(p->D));
    for (x.g0 = 0; x.g0 < a->heads.n_kv_heads; x.g0 += p->heads_at_once) {
        int n = (int)min64(p->heads_at_once, a->heads.n_kv_heads - x.g0);
        ql_parallel(a->n_threads, n * (a->n_global + a->n_local), gather_task, &x);
        if (p->panels) ql_parallel(a->n_threads, n * packs, pack_task, &x);
        ql_parallel(a->n_threads, n * p->n_tiles, tile_task, &x);
    }
    if (a->local_mass) sum_mass(&x);
}
