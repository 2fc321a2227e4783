#include "linear.h"

#include <string.h>

#include "blas.h"
#include "quant.h"
#include "strips.h"
#include "threads.h"

/* Few rows: a panel is at most about so many bytes of weights, and whole groups of rows as the
 * kernels take them. Results of the few-row kernels do not depend on panels at all. */
enum { FEW_BYTES = 128 << 10, FEW_GROUP = 8, MOST_FEW_ROWS = 512 };
/* Up to so many rows of x the few-row kernels, called again for each QL_FEW_ROWS rows, are faster
 * than sgemm. */
enum { MOST_ROWS_BY_DOTS = 64, MOST_ROWS_BEFORE_PANELS = 4 };
/* Many rows: a matrix is cut into a power of two panels (so they go evenly on 2, 4, 8, 16 threads),
 * 16 where it is large enough; narrower ones are slower, as sgemm packs x anew for each. bfloat16
 * is unpacked in blocks of so many values. */
enum {
    LEAST_PANEL = 128,
    MOST_PANEL = 512,
    MANY_PANELS = 16,
    WHOLE = 16,
    UNPACKED_VALUES = 256 << 10
};
/* Products by our own panels: items of QL_PANEL columns by all rows, or by so few that there are
 * enough items to go evenly on several threads. The panels are packed anew for each: 2 % of the
 * time at 512 rows. So many numbers of a column are packed at a time, and those of float32 met by
 * so many rows of x, that both stay in a core's own cache. */
enum { ENOUGH_ITEMS = 16, LEAST_ROWS = 64, PACKED_ROWS = 16, CACHED_ROWS = 48 };
enum { PANEL_DEPTH = 1024, ROUNDED_DEPTH = 640 };
/* Products of whole numbers: with so few rows weights come from memory, and items are of a number
 * of bytes; with more they are as products of bfloat16. */
enum { MOST_ROWS_BY_BYTES = 4 };

typedef enum way { BY_DOTS, BY_SGEMM, BY_PANELS, BY_INTEGERS } way;

typedef struct region {
    const ql_kernels *kernels;
    const ql_linear_job *jobs;
    int n_rows;
    way way;
    int panel[QL_MAX_JOBS]; /* rows of W in a panel of each job */
    int rows[QL_MAX_JOBS];  /* rows of x in an item of each job */
    int end[QL_MAX_JOBS];   /* items of this job and those before it */
    uint16_t *x;            /* [T, even_k] as bfloat16, for BY_PANELS of bfloat16 */
    ql_group *groups;       /* [T, groups_of(k)], for BY_INTEGERS */
    char *scratch;
    size_t scratch_stride; /* bytes of each thread */
} region;

static bool in_strips(const ql_matrix *w) { return w->dtype == QL_INT8 || w->dtype == QL_Q4; }

/* Rows that the few-row kernels take at once. */
static int few_group(const ql_matrix *w) {
    return in_strips(w) ? QL_STREAMS * QL_STRIP : FEW_GROUP;
}

static int most_few_panel(const ql_matrix *w) {
    size_t k = (size_t)w->n_in, group = (size_t)few_group(w);
    size_t bytes = in_strips(w) ? QL_STREAMS * ql_strip_bytes(w->dtype, k)
                                : FEW_GROUP * k * ql_dtype_block_bytes(w->dtype);
    size_t rows = FEW_BYTES / bytes * group;
    return (int)(rows < group ? group : rows > MOST_FEW_ROWS ? MOST_FEW_ROWS : rows);
}

/* So that panels go evenly on the threads. */
static int few_panel(const ql_matrix *w, int n_threads) {
    int most = most_few_panel(w), group = few_group(w), n = (w->n_out + most - 1) / most;
    n = (n + n_threads - 1) / n_threads * n_threads;
    int rows = (w->n_out + n - 1) / n;
    return (rows + group - 1) / group * group;
}

static int many_panel(const ql_matrix *w) {
    int n = 1;
    while (n < MANY_PANELS ? w->n_out >= 2 * n * LEAST_PANEL : w->n_out > n * MOST_PANEL) n *= 2;
    int rows = (w->n_out + n - 1) / n;
    return (rows + WHOLE - 1) / WHOLE * WHOLE;
}

/* Columns of a panel of bfloat16 that are unpacked at once. */
static int many_columns(const ql_matrix *w) {
    int most = UNPACKED_VALUES / many_panel(w);
    return w->n_in < most ? w->n_in : most;
}

/* Whether panels of these weights are of bfloat16, as x must then be. */
static bool rounds_x(const ql_kernels *kernels, const ql_matrix *w) {
    return w->dtype == QL_BF16 && kernels->panels;
}

static way way_of(const ql_kernels *kernels, const ql_matrix *w, int n_rows) {
    if (in_strips(w)) return BY_INTEGERS;
    if (rounds_x(kernels, w)) return n_rows <= MOST_ROWS_BEFORE_PANELS ? BY_DOTS : BY_PANELS;
    if (n_rows <= MOST_ROWS_BY_DOTS) return BY_DOTS;
    return kernels->beats_blas ? BY_PANELS : BY_SGEMM;
}

static size_t even(int k) { return (size_t)(k + 1) / 2 * 2; }
static size_t groups_of(int k) { return (size_t)(k + QL_GROUP - 1) / QL_GROUP; }
static size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Bytes of the rounded x, before the threads' own. */
static size_t shared_scratch(const ql_kernels *kernels, way way, const ql_matrix *w, int n_rows) {
    if (way == BY_PANELS && rounds_x(kernels, w))
        return aligned((size_t)n_rows * even(w->n_in) * sizeof(uint16_t));
    if (way == BY_INTEGERS) return aligned((size_t)n_rows * groups_of(w->n_in) * sizeof(ql_group));
    return 0;
}

static const ql_panels *format_of(const ql_kernels *kernels, const ql_matrix *w) {
    return rounds_x(kernels, w) ? kernels->panels : kernels->panels_f32;
}

/* Numbers of a column that are packed at once, whole tiles of them. */
static int panel_depth(const ql_panels *format, const ql_matrix *w) {
    int most = format->item == sizeof(float) ? PANEL_DEPTH : ROUNDED_DEPTH;
    int pieces = (w->n_in + most - 1) / most, depth = (w->n_in + pieces - 1) / pieces;
    return (depth + QL_PANEL_DEPTH - 1) / QL_PANEL_DEPTH * QL_PANEL_DEPTH;
}

static size_t panel_bytes(const ql_panels *format, int depth) {
    size_t whole = (size_t)(depth + QL_PANEL_DEPTH - 1) / QL_PANEL_DEPTH * QL_PANEL_DEPTH;
    return whole * (size_t)format->columns * format->item;
}

/* Bytes of the panels of QL_PANEL columns. */
static size_t panels_scratch(const ql_kernels *kernels, const ql_matrix *w) {
    const ql_panels *format = format_of(kernels, w);
    return panel_bytes(format, panel_depth(format, w)) * (size_t)(QL_PANEL / format->columns);
}

static size_t thread_scratch(const ql_kernels *kernels, way way, const ql_matrix *w) {
    if (way == BY_INTEGERS) return 0;
    if (way == BY_PANELS && rounds_x(kernels, w)) return panels_scratch(kernels, w);
    if (way == BY_PANELS) /* and weights unpacked to float32 */
        return panels_scratch(kernels, w) +
               panel_bytes(kernels->panels_f32, panel_depth(kernels->panels_f32, w));
    if (way == BY_DOTS) return aligned((size_t)most_few_panel(w) * QL_FEW_ROWS * sizeof(float));
    if (w->dtype == QL_F32) return 0;
    return aligned((size_t)many_panel(w) * (size_t)many_columns(w) * sizeof(float));
}

size_t ql_linear_scratch(const ql_kernels *kernels, int n_threads, const ql_matrix *w, int n_rows) {
    size_t most = 0;
    const way ways[] = {way_of(kernels, w, n_rows), way_of(kernels, w, 1)};
    for (int i = 0; i < 2; i++) { /* there may be fewer rows */
        size_t bytes = shared_scratch(kernels, ways[i], w, n_rows) +
                       (size_t)n_threads * thread_scratch(kernels, ways[i], w);
        if (bytes > most) most = bytes;
    }
    return most;
}

static void add_rows(const region *r, float *y, size_t ldy, const float *x, size_t ldx, int n_rows,
                     int n) {
    for (int t = 0; t < n_rows; t++)
        r->kernels->add(y + (size_t)t * ldy, x + (size_t)t * ldx, (size_t)n);
}

/* y [n_rows, n] = x times rows first ... first + n - 1 of the matrix, QL_FEW_ROWS rows of x at a
 * time. */
static void few_rows(const region *r, const ql_linear_job *job, int first, int n, float *scratch) {
    const ql_matrix *w = job->w;
    size_t k = (size_t)w->n_in, at = (size_t)first * k;
    for (int t = 0; t < r->n_rows; t += QL_FEW_ROWS) {
        int n_x = r->n_rows - t < QL_FEW_ROWS ? r->n_rows - t : QL_FEW_ROWS;
        const float *x = job->x + (size_t)t * job->ldx;
        float *y = job->y + (size_t)t * job->ldy + first;
        float *to = job->accumulate ? scratch : y;
        size_t ldto = job->accumulate ? (size_t)n : job->ldy;
        if (w->dtype == QL_F32)
            r->kernels->dots_f32(to, ldto, x, job->ldx, (const float *)w->data + at, k, n_x,
                                 (size_t)n, k);
        else
            r->kernels->dots_bf16(to, ldto, x, job->ldx, (const uint16_t *)w->data + at, k, n_x,
                                  (size_t)n, k);
        if (job->accumulate) add_rows(r, y, job->ldy, scratch, (size_t)n, n_x, n);
    }
}

static void many_rows(const region *r, const ql_linear_job *job, int first, int n, float *scratch) {
    const ql_matrix *w = job->w;
    size_t k = (size_t)w->n_in, at = (size_t)first * k;
    float *y = job->y + first, keep = job->accumulate ? 1.0f : 0.0f;
    if (w->dtype == QL_F32) {
        ql_sgemm_nt(y, job->ldy, job->x, job->ldx, (const float *)w->data + at, k, r->n_rows, n,
                    w->n_in, 1.0f, keep);
        return;
    }
    const uint16_t *from = (const uint16_t *)w->data + at;
    for (int c = 0, width = many_columns(w); c < w->n_in; c += width, keep = 1.0f) {
        if (width > w->n_in - c) width = w->n_in - c;
        for (int i = 0; i < n; i++)
            r->kernels->unpack_bf16(scratch + i * width, from + (size_t)i * k + c, (size_t)width);
        ql_sgemm_nt(y, job->ldy, job->x + c, job->ldx, scratch, (size_t)width, r->n_rows, n, width,
                    1.0f, keep);
    }
}

static void round_task(void *context, int item, int thread) {
    (void)thread;
    const region *r = context;
    size_t k = (size_t)r->jobs[0].w->n_in, row = even((int)k), groups = groups_of((int)k);
    for (int t = item * PACKED_ROWS; t < r->n_rows && t < (item + 1) * PACKED_ROWS; t++) {
        if (r->way == BY_INTEGERS) {
            r->kernels->integers->round(r->groups + t * groups, r->jobs[0].x + t * r->jobs[0].ldx,
                                        k);
            continue;
        }
        r->kernels->pack_bf16(r->x + t * row, r->jobs[0].x + t * r->jobs[0].ldx, k);
        if (row > k) r->x[t * row + k] = 0;
    }
}

/* Numbers at ... at + depth - 1 of the weights' rows first ... first + n - 1 as panels, one behind
 * the other; unpacked [columns, depth], for panels of float32. */
static void pack_weights(const region *r, const ql_matrix *w, int first, int n, int at, int depth,
                         char *panels, float *unpacked) {
    const ql_panels *format = format_of(r->kernels, w);
    size_t k = (size_t)w->n_in;
    for (int j = 0; j < n; j += format->columns, panels += panel_bytes(format, depth)) {
        int wide = n - j < format->columns ? n - j : format->columns;
        const char *rows = (const char *)w->data +
                           ((size_t)(first + j) * k + (size_t)at) * ql_dtype_block_bytes(w->dtype);
        if (w->dtype == QL_BF16 && format->item == sizeof(float)) {
            for (int i = 0; i < wide; i++)
                r->kernels->unpack_bf16(unpacked + i * depth, (const uint16_t *)rows + i * k,
                                        (size_t)depth);
            format->pack_rows(panels, unpacked, (size_t)depth, wide, (size_t)depth);
        } else {
            format->pack_rows(panels, rows, k, wide, (size_t)depth);
        }
    }
}

/* Columns first ... first + n - 1 of y, rows from ... from + rows - 1. */
static void panel_rows(const region *r, const ql_linear_job *job, int first, int n, int from,
                       int rows, char *panels) {
    const ql_panels *format = format_of(r->kernels, job->w);
    bool rounded = rounds_x(r->kernels, job->w);
    int most = panel_depth(format, job->w), k = job->w->n_in,
        at_once = rounded ? rows : CACHED_ROWS;
    size_t ldx = rounded ? even(k) : job->ldx;
    const char *x = rounded ? (const char *)r->x : (const char *)job->x;
    for (int at = 0; at < k; at += most) {
        int depth = k - at < most ? k - at : most;
        pack_weights(r, job->w, first, n, at, depth, panels,
                     (float *)(panels + panels_scratch(r->kernels, job->w)));
        for (int t = from; t < from + rows; t += at_once) {
            int m = from + rows - t < at_once ? from + rows - t : at_once;
            format->multiply(job->y + (size_t)t * job->ldy + first, job->ldy,
                             x + ((size_t)t * ldx + at) * format->item, ldx, panels,
                             panel_bytes(format, depth), m, n, (size_t)depth,
                             job->accumulate || at > 0);
        }
    }
}

/* The same by whole numbers; first is that of a strip. */
static void integer_rows(const region *r, const ql_linear_job *job, int first, int n, int from,
                         int rows) {
    const ql_matrix *w = job->w;
    const ql_integers *integers = r->kernels->integers;
    size_t k = (size_t)w->n_in;
    const uint8_t *strips =
        (const uint8_t *)w->data + (size_t)first / QL_STRIP * ql_strip_bytes(w->dtype, k);
    (w->dtype == QL_INT8 ? integers->int8 : integers->q4)(
        job->y + (size_t)from * job->ldy + first, job->ldy,
        r->groups + (size_t)from * groups_of(w->n_in), strips, rows, (size_t)n, k, job->accumulate);
}

static void run_item(void *context, int item, int thread) {
    const region *r = context;
    int j = 0;
    while (item >= r->end[j]) j++;
    if (j) item -= r->end[j - 1];
    const ql_linear_job *job = &r->jobs[j];
    int panels = (job->w->n_out + r->panel[j] - 1) / r->panel[j];
    int first = item % panels * r->panel[j], from = item / panels * r->rows[j];
    int n = job->w->n_out - first < r->panel[j] ? job->w->n_out - first : r->panel[j];
    int rows = r->n_rows - from < r->rows[j] ? r->n_rows - from : r->rows[j];
    void *scratch = r->scratch + (size_t)thread * r->scratch_stride;
    if (r->way == BY_DOTS) few_rows(r, job, first, n, scratch);
    if (r->way == BY_SGEMM) many_rows(r, job, first, n, scratch);
    if (r->way == BY_PANELS) panel_rows(r, job, first, n, from, rows, scratch);
    if (r->way == BY_INTEGERS) integer_rows(r, job, first, n, from, rows);
    if (job->w->bias)
        add_rows(r, job->y + (size_t)from * job->ldy + first, job->ldy, job->w->bias + first, 0,
                 rows, n);
}

/* Cuts job j into items; returns how many. */
static int cut(region *r, int j, int n_threads) {
    const ql_matrix *w = r->jobs[j].w;
    r->rows[j] = r->n_rows;
    bool few = r->way == BY_DOTS || (r->way == BY_INTEGERS && r->n_rows <= MOST_ROWS_BY_BYTES);
    r->panel[j] = few ? few_panel(w, n_threads) : r->way == BY_SGEMM ? many_panel(w) : QL_PANEL;
    int panels = (w->n_out + r->panel[j] - 1) / r->panel[j], pieces = 1;
    while (!few && r->way != BY_SGEMM && panels * pieces < ENOUGH_ITEMS &&
           r->n_rows / (2 * pieces) >= LEAST_ROWS)
        pieces *= 2;
    r->rows[j] = (r->n_rows + pieces - 1) / pieces;
    return panels * ((r->n_rows + r->rows[j] - 1) / r->rows[j]);
}

/* Jobs that go the same way. */
static void run_region(const ql_kernels *kernels, int n_threads, const ql_linear_job *jobs,
                       int n_jobs, int n_rows, void *scratch) {
    region r = {.kernels = kernels, .jobs = jobs, .n_rows = n_rows};
    r.way = way_of(kernels, jobs[0].w, n_rows);
    r.x = scratch;
    r.groups = scratch;
    size_t shared = shared_scratch(kernels, r.way, jobs[0].w, n_rows);
    r.scratch = (char *)scratch + shared;
    int n_items = 0;
    for (int j = 0; j < n_jobs; j++) {
        size_t bytes = thread_scratch(kernels, r.way, jobs[j].w);
        if (bytes > r.scratch_stride) r.scratch_stride = bytes;
        n_items += cut(&r, j, n_threads);
        r.end[j] = n_items;
    }
    int n_rounded = shared ? (n_rows + PACKED_ROWS - 1) / PACKED_ROWS : 0;
    ql_parallel(n_rounded > 1 ? n_threads : 1, n_rounded, round_task, &r);
    ql_parallel(n_threads, n_items, run_item, &r);
}

void ql_linear(const ql_kernels *kernels, int n_threads, const ql_linear_job *jobs, int n_jobs,
               int n_rows, void *scratch) {
    for (int first = 0, end; first < n_jobs; first = end) {
        way same = way_of(kernels, jobs[first].w, n_rows);
        for (end = first + 1; end < n_jobs && way_of(kernels, jobs[end].w, n_rows) == same;) end++;
        run_region(kernels, n_threads, jobs + first, end - first, n_rows, scratch);
    }
}

void ql_matrix_row(const ql_kernels *kernels, float *y, const ql_matrix *w, int64_t i) {
    size_t k = (size_t)w->n_in, at = (size_t)i * k;
    if (in_strips(w))
        ql_strip_row(y,
                     (const uint8_t *)w->data + (size_t)i / QL_STRIP * ql_strip_bytes(w->dtype, k),
                     w->dtype, (int)(i % QL_STRIP), k);
    else if (w->dtype == QL_F32)
        memcpy(y, (const float *)w->data + at, k * sizeof(float));
    else
        kernels->unpack_bf16(y, (const uint16_t *)w->data + at, k);
}
