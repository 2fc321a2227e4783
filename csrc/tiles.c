#include "tiles.h"

#include <math.h>
#include <string.h>

#include "sizes.h"
#include "threads.h"

/* An item of work is a tile: a kv head by some tokens. It is computed in strips of about so many
 * rows (tokens times query heads), whose scores stay in a core's own cache. */
enum { TILE_TOKENS = 64, STRIP_ROWS = 48 };
/* Scores of global and of local keys begin at whole cache lines, and their weights where panels can
 * be cut. */
enum { WHOLE = QL_PANEL_DEPTH };
static const size_t STRIP_BYTES = (size_t)32 << 20, PACKED_BYTES = (size_t)256 << 20;

static int64_t whole(int64_t n) { return (n + WHOLE - 1) / WHOLE * WHOLE; }
/* Scores of a row: an odd number of cache lines, or rows would share a few of the caches' sets. */
static int64_t odd_lines(int64_t whole) { return whole + 64 / (int64_t)sizeof(float); }

/* ---- sizes and places ---- */

/* The global or the local keys of one kv head, as they are multiplied. Bytes from the head's
 * start. */
typedef struct keys_plan {
    int64_t n;
    size_t key_panels, value_panels; /* [n / columns] of [D]; [D / columns] of [n] */
} keys_plan;

typedef struct plan {
    const ql_panels *panels; /* products in the format of keys, or in float32 */
    int group;               /* query heads per kv head */
    int D;
    keys_plan global, local;
    int tile_tokens, strip_tokens, n_tiles;
    int heads_at_once; /* kv heads whose panels are there together */
    int64_t band;      /* most local keys of a tile */
    size_t packed;     /* bytes of one kv head's panels */
    size_t mass;       /* floats [n_tiles, band] of one query head */
    size_t queries;    /* bytes of a strip's queries or outputs */
    size_t scores;     /* bytes of a strip's scores */
    size_t per_thread; /* bytes */
} plan;

static size_t panels_of(const plan *p, int64_t columns) {
    return (size_t)((columns + p->panels->columns - 1) / p->panels->columns);
}

/* Bytes of one panel of k numbers a column. */
static size_t panel_bytes(const plan *p, int64_t k) {
    return (size_t)whole(k) * (size_t)p->panels->columns * p->panels->item;
}

static size_t plan_keys(keys_plan *keys, const plan *p, int64_t n, size_t at) {
    keys->n = n;
    keys->key_panels = at;
    keys->value_panels = keys->key_panels + panels_of(p, n) * panel_bytes(p, p->D);
    return keys->value_panels + panels_of(p, p->D) * panel_bytes(p, n);
}

static plan make_plan(const ql_kernels *kernels, ql_heads heads, ql_dtype dtype, int n_tokens,
                      int64_t n_global, int64_t n_local, int64_t reach) {
    plan p = {.group = heads.n_heads / heads.n_kv_heads, .D = heads.head_dim};
    p.panels = dtype != QL_F32 && kernels->panels ? kernels->panels : kernels->panels_f32;
    p.tile_tokens = (int)ql_min(TILE_TOKENS, n_tokens);
    p.n_tiles = (n_tokens + p.tile_tokens - 1) / p.tile_tokens;
    int strip = (int)ql_max(1, STRIP_ROWS / p.group);
    size_t columns = (size_t)odd_lines(whole(n_global) + whole(n_local));
    while (strip > 1 && sizeof(float) * p.group * strip * columns > STRIP_BYTES) strip /= 2;
    p.strip_tokens = (int)ql_min(strip, p.tile_tokens);
    p.band = reach > n_local ? n_local : ql_min(n_local, p.tile_tokens + reach - 1 + QL_PANEL);
    p.packed = plan_keys(&p.local, &p, n_local, plan_keys(&p.global, &p, n_global, 0));
    p.heads_at_once =
        (int)ql_max(1, ql_min(heads.n_kv_heads, (int64_t)(PACKED_BYTES / (p.packed + 1))));
    p.mass = (size_t)p.n_tiles * p.band;
    size_t rows = (size_t)p.group * p.strip_tokens;
    p.queries = ql_aligned(rows * p.D * sizeof(float));
    p.scores =
        ql_aligned(rows * (size_t)odd_lines(whole(n_global) + whole(p.band)) * sizeof(float));
    p.per_thread =
        (size_t)ql_max((int64_t)(3 * p.queries + p.scores + ql_aligned(rows * sizeof(float))),
                       (int64_t)ql_aligned((size_t)QL_PANEL * (size_t)p.D * p.panels->item));
    return p;
}

typedef struct tiles {
    const ql_attention *a;
    plan plan;
    int g0;        /* first kv head whose panels are there */
    char *packed;  /* [heads_at_once] of plan.packed bytes */
    float *mass;   /* [H, n_tiles, band] */
    char *threads; /* [n_threads] of plan.per_thread bytes */
} tiles;

static char *scratch_of(const tiles *x, int thread) {
    return x->threads + (size_t)thread * x->plan.per_thread;
}

static char *head_at(const tiles *x, int g) { return x->packed + (g - x->g0) * x->plan.packed; }

/* ---- keys and values of a kv head in panels ---- */

/* The format of numbers that are multiplied. */
static ql_dtype format_of(const tiles *x) {
    return x->plan.panels->item == sizeof(float) ? QL_F32 : QL_BF16;
}

static void copy_rows(const tiles *x, char *to, const char *from, ql_dtype dtype, int n) {
    size_t D = (size_t)x->plan.D;
    ql_dtype format = format_of(x);
    if (dtype == format) {
        memcpy(to, from, n * ql_row_bytes(dtype, D));
        return;
    }
    float row[QL_MAX_HEAD_DIM];
    for (int i = 0; i < n; i++) {
        ql_get_row(x->a->kernels, row, from + i * ql_row_bytes(dtype, D), dtype, D);
        ql_put_row(x->a->kernels, to + i * ql_row_bytes(format, D), row, format, D);
    }
}

/* Keys (or values) from ... from + n - 1 of kv head g in the spans, side by side in the format that
 * is multiplied, [n, D]: where they lie, or in room. */
static const char *rows_of(const tiles *x, const ql_span *spans, bool values, int g, int64_t from,
                           int n, char *room) {
    size_t D = (size_t)x->plan.D, row = ql_row_bytes(format_of(x), D);
    for (; from >= spans->n; spans++) from -= spans->n;
    for (int done = 0, some; done < n; done += some, from = 0, spans++) {
        some = (int)ql_min(n - done, spans->n - from);
        const char *rows = values ? (const char *)spans->v + g * spans->v_stride
                                  : (const char *)spans->k + g * spans->k_stride;
        ql_dtype dtype = values ? spans->v_dtype : spans->k_dtype;
        rows += (size_t)from * ql_row_bytes(dtype, D);
        if (some == n && dtype == format_of(x)) return rows;
        copy_rows(x, room + (size_t)done * row, rows, dtype, some);
    }
    return room;
}

static int64_t parts_of(const keys_plan *keys) { return (keys->n + QL_PANEL - 1) / QL_PANEL; }

/* The panels of QL_PANEL keys of a head, and their part of those of the values. */
static void pack_task(void *context, int item, int thread) {
    const tiles *x = context;
    const plan *p = &x->plan;
    int64_t n_global = parts_of(&p->global), n_parts = n_global + parts_of(&p->local),
            part = item % n_parts;
    int g = x->g0 + (int)(item / n_parts);
    bool global = part < n_global;
    const keys_plan *keys = global ? &p->global : &p->local;
    const ql_span *spans = global ? x->a->global : x->a->local;
    int64_t from = (global ? part : part - n_global) * QL_PANEL;
    int n = (int)ql_min(QL_PANEL, keys->n - from), columns = p->panels->columns;
    size_t D = (size_t)p->D;
    char *head = head_at(x, g), *room = scratch_of(x, thread);
    const char *rows = rows_of(x, spans, false, g, from, n, room);
    for (int at = 0; at < n; at += columns)
        p->panels->pack_rows(head + keys->key_panels + (from + at) / columns * panel_bytes(p, p->D),
                             rows + (size_t)at * D * p->panels->item, D,
                             (int)ql_min(n - at, columns), D);
    rows = rows_of(x, spans, true, g, from, n, room);
    for (int at = 0; at < p->D; at += columns)
        p->panels->pack_columns(head + keys->value_panels + at / columns * panel_bytes(p, keys->n) +
                                    panel_bytes(p, from),
                                rows + (size_t)at * p->panels->item, D,
                                (int)ql_min(p->D - at, columns), (size_t)n);
}

/* ---- the two products of a strip ---- */

/* scores [rows, n] (stride), not scaled, = queries [rows, D] times the keys from ... from + n - 1;
 * from is a multiple of QL_PANEL. */
static void multiply_keys(const tiles *x, float *scores, size_t stride, const void *queries,
                          const keys_plan *keys, const char *head, int rows, int64_t from,
                          int64_t n) {
    const plan *p = &x->plan;
    size_t D = (size_t)p->D;
    size_t panel = panel_bytes(p, p->D);
    p->panels->multiply(scores, stride, queries, D,
                        head + keys->key_panels + from / p->panels->columns * panel, panel, rows,
                        (int)n, D, false);
}

/* out [rows, D] += weights [rows, n] (stride numbers apart) times the values of the keys from ...
 * from + n - 1; from is whole. */
static void multiply_values(const tiles *x, float *out, const char *weights, size_t stride,
                            const keys_plan *keys, const char *head, int rows, int64_t from,
                            int64_t n) {
    const plan *p = &x->plan;
    p->panels->multiply(out, p->D, weights, stride,
                        head + keys->value_panels + panel_bytes(p, from), panel_bytes(p, keys->n),
                        rows, p->D, (size_t)n, true);
}

/* ---- a strip: some tokens of a tile ---- */

typedef struct strip { /* scores are [rows, columns]: global keys, local keys */
    int g, t0, n, rows;
    int64_t n_global; /* keys that the last query sees */
    int64_t skip;     /* local keys before column local_at, whole panels */
    int64_t n_band;   /* local keys from there on */
    int64_t local_at;
    size_t columns;
} strip;

static strip cut_strip(const tiles *x, int g, int t0, int n) {
    const ql_attention *a = x->a;
    strip t = {.g = g, .t0 = t0, .n = n, .rows = x->plan.group * n};
    int64_t begin = a->first + t0, last = begin + n - 1, local_first = a->local[0].first;
    t.n_global = ql_visible_global(a, last);
    if (a->reach <= begin) t.skip = ql_max(0, begin - a->reach + 1 - local_first);
    t.skip -= t.skip % QL_PANEL;
    t.n_band = last + 1 - local_first - t.skip;
    t.local_at = whole(t.n_global);
    t.columns = (size_t)odd_lines(t.local_at + whole(t.n_band));
    return t;
}

/* First of the strip's local keys, counted from column local_at, that the query at position p
 * sees. */
static int64_t first_seen(const tiles *x, const strip *t, int64_t p) {
    const ql_attention *a = x->a;
    return a->reach > p ? 0 : ql_max(0, p - a->reach + 1 - a->local[0].first - t->skip);
}

/* Queries of a strip at their own positions (near) and at the far distance: [rows, D]. */
static void rotate_queries(const tiles *x, const strip *t, char *near, char *far) {
    const ql_attention *a = x->a;
    size_t D = x->plan.D, row = D * x->plan.panels->item;
    float rotated[QL_MAX_HEAD_DIM];
    for (int i = 0; i < t->rows; i++) {
        int token = t->t0 + i % t->n, h = t->g * x->plan.group + i / t->n;
        const float *q = a->q + ((size_t)token * a->heads.n_heads + h) * D;
        const float *cos = a->cos + token * (D / 2), *sin = a->sin + token * (D / 2);
        for (int which = 0; which < (t->n_global ? 2 : 1); which++) {
            char *to = (which ? far : near) + i * row;
            a->kernels->rope(rotated, q, which ? a->far_cos : cos, which ? a->far_sin : sin, D);
            ql_put_row(a->kernels, to, rotated, format_of(x), D);
        }
    }
}

/* In place: the scores of the query at position p become weights, 0 for the keys that it does not
 * see, and its weights of local keys over the sum of all are added to mass (or NULL). Returns
 * 1 / sum. */
static float softmax_row(const tiles *x, const strip *t, float *scores, float *mass, int64_t p) {
    const ql_attention *a = x->a;
    const ql_panels *panels = x->plan.panels;
    int64_t seen = ql_min(t->n_global, ql_visible_global(a, p)), from = first_seen(x, t, p),
            to = p + 1 - a->local[0].first - t->skip, n = to - from;
    float *local = scores + t->local_at;
    float far = a->kernels->max(scores, (size_t)seen),
          near = a->kernels->max(local + from, (size_t)n), top = far > near ? far : near,
          scale = 1 / sqrtf((float)x->plan.D);
    /* Nothing is overwritten before it is read: a weight takes no more room than its score. */
    char *weights = (char *)scores, *local_weights = weights + t->local_at * panels->item,
         *end = weights + t->columns * panels->item;
    float sum = panels->exp_sum(weights, scores, scale, top, (size_t)seen);
    memset(weights + seen * panels->item, 0, (size_t)(t->local_at - seen) * panels->item);
    sum +=
        panels->exp_sum(local_weights + from * panels->item, local + from, scale, top, (size_t)n);
    memset(local_weights, 0, (size_t)from * panels->item);
    memset(local_weights + to * panels->item, 0,
           (size_t)(end - local_weights) - (size_t)to * panels->item);
    if (mass)
        panels->add_scaled(mass + from, local_weights + from * panels->item, 1 / sum, (size_t)n);
    return 1 / sum;
}

/* mass [group] rows of x->plan.mass floats: of the tile's local keys from t->skip on; or NULL. */
static void attend_strip(const tiles *x, const strip *t, float *mass, char *scratch) {
    const ql_attention *a = x->a;
    const plan *p = &x->plan;
    char *near = scratch, *far = near + p->queries, *weights = far + 2 * p->queries;
    float *out = (float *)(far + p->queries), *scores = (float *)weights,
          *factors = (float *)(weights + p->scores);
    const char *head = head_at(x, t->g);
    rotate_queries(x, t, near, far);
    multiply_keys(x, scores, t->columns, far, &p->global, head, t->rows, 0, t->n_global);
    multiply_keys(x, scores + t->local_at, t->columns, near, &p->local, head, t->rows, t->skip,
                  t->n_band);
    for (int i = 0; i < t->rows; i++)
        factors[i] =
            softmax_row(x, t, scores + (size_t)i * t->columns,
                        mass ? mass + i / t->n * p->mass : NULL, a->first + t->t0 + i % t->n);
    size_t stride = t->columns * sizeof(float) / p->panels->item;
    int64_t unseen = first_seen(x, t, a->first + t->t0) / WHOLE * WHOLE;
    memset(out, 0, (size_t)t->rows * p->D * sizeof *out);
    multiply_values(x, out, weights, stride, &p->global, head, t->rows, 0, t->n_global);
    multiply_values(x, out, weights + (t->local_at + unseen) * p->panels->item, stride, &p->local,
                    head, t->rows, t->skip + unseen, t->n_band - unseen);
    for (int i = 0; i < t->rows; i++) {
        size_t row = (size_t)(t->t0 + i % t->n) * a->heads.n_heads + t->g * p->group + i / t->n;
        a->kernels->scale(a->out + row * p->D, out + (size_t)i * p->D, factors[i], p->D);
    }
}

/* ---- a tile: its strips, and what they add up to ---- */

/* Tile i as one strip: the band of local keys that its mass is about. */
static strip tile_at(const tiles *x, int g, int i) {
    int t0 = i * x->plan.tile_tokens;
    return cut_strip(x, g, t0, (int)ql_min(x->plan.tile_tokens, x->a->n_tokens - t0));
}

static void tile_task(void *context, int item, int thread) {
    const tiles *x = context;
    const plan *p = &x->plan;
    int g = x->g0 + item / p->n_tiles, i = item % p->n_tiles;
    strip tile = tile_at(x, g, i);
    float *mass =
        x->a->local_mass ? x->mass + (size_t)g * p->group * p->mass + (size_t)i * p->band : NULL;
    for (int h = 0; mass && h < p->group; h++)
        memset(mass + h * p->mass, 0, (size_t)tile.n_band * sizeof *mass);
    for (int at = 0; at < tile.n; at += p->strip_tokens) {
        strip t = cut_strip(x, g, tile.t0 + at, (int)ql_min(p->strip_tokens, tile.n - at));
        attend_strip(x, &t, mass ? mass + (t.skip - tile.skip) : NULL, scratch_of(x, thread));
    }
}

/* Adds the tiles' sums in a fixed order: results must not depend on which thread came first. */
static void sum_mass(const tiles *x) {
    const ql_attention *a = x->a;
    const plan *p = &x->plan;
    memset(a->local_mass, 0, (size_t)a->heads.n_heads * p->local.n * sizeof *a->local_mass);
    for (int i = 0; i < p->n_tiles; i++) {
        strip t = tile_at(x, 0, i);
        for (int h = 0; h < a->heads.n_heads; h++)
            a->kernels->add(a->local_mass + h * p->local.n + t.skip,
                            x->mass + h * p->mass + (size_t)i * p->band, (size_t)t.n_band);
    }
}

/* ---- all of it ---- */

/* Laid out for most_global keys: what fewer of them need is not always less. */
static plan plan_of(const ql_attention *a) {
    plan p = make_plan(a->kernels, a->heads, a->dtype, a->n_tokens, a->most_global,
                       ql_count_keys(a->local, a->n_local), a->reach);
    p.global.n = ql_count_keys(a->global, a->n_global);
    return p;
}

size_t ql_tiles_scratch(const ql_kernels *kernels, ql_heads heads, ql_dtype dtype, int n_threads,
                        int n_tokens, int64_t n_global, int64_t n_local, int64_t reach) {
    plan p = make_plan(kernels, heads, dtype, n_tokens, n_global, n_local, reach);
    return p.heads_at_once * p.packed + ql_aligned(heads.n_heads * p.mass * sizeof(float)) +
           n_threads * p.per_thread;
}

void ql_attend_tiles(const ql_attention *a, void *scratch) {
    tiles x = {.a = a, .plan = plan_of(a), .packed = scratch};
    const plan *p = &x.plan;
    x.mass = (float *)(x.packed + p->heads_at_once * p->packed);
    x.threads = (char *)x.mass + ql_aligned(a->heads.n_heads * p->mass * sizeof(float));
    int parts = (int)(parts_of(&p->global) + parts_of(&p->local));
    for (x.g0 = 0; x.g0 < a->heads.n_kv_heads; x.g0 += p->heads_at_once) {
        int n = (int)ql_min(p->heads_at_once, a->heads.n_kv_heads - x.g0);
        ql_parallel(a->n_threads, n * parts, pack_task, &x);
        ql_parallel(a->n_threads, n * p->n_tiles, tile_task, &x);
    }
    if (a->local_mass) sum_mass(&x);
}
