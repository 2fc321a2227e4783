#include "linear.h"

#include <string.h>

#include "blas.h"
#include "threads.h"

/* Few rows: a panel is about so many bytes of weights, and whole groups of rows as the kernels take
 * them. Results of the few-row kernels do not depend on panels at all. */
enum { FEW_BYTES = 128 << 10, FEW_GROUP = 8, MOST_FEW_ROWS = 512 };
/* Up to so many rows of x the few-row kernels, called again for each QL_FEW_ROWS rows, are faster
 * than sgemm. */
enum { MOST_ROWS_BY_DOTS = 64 };
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

typedef struct region {
    const ql_kernels *kernels;
    const ql_linear_job *jobs;
    int n_jobs, n_rows;
    bool few;
    int panel[QL_MAX_JOBS]; /* rows of W in a panel of each job */
    int end[QL_MAX_JOBS];   /* items of this job and those before it */
    char *scratch;
    size_t scratch_stride;
} region;

static size_t value_bytes(ql_dtype dtype) {
    return dtype == QL_BF16 ? sizeof(uint16_t) : sizeof(float);
}

static int few_panel(const ql_matrix *w) {
    size_t rows = FEW_BYTES / ((size_t)w->n_in * value_bytes(w->dtype)) / FEW_GROUP * FEW_GROUP;
    return rows < FEW_GROUP ? FEW_GROUP : rows > MOST_FEW_ROWS ? MOST_FEW_ROWS : (int)rows;
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

size_t ql_linear_scratch(const ql_matrix *w) {
    size_t few = (size_t)few_panel(w) * QL_FEW_ROWS;
    size_t many = w->dtype == QL_F32 ? 0 : (size_t)many_panel(w) * (size_t)many_columns(w);
    return (few > many ? few : many) * sizeof(float);
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

static void run_item(void *context, int item, int thread) {
    const region *r = context;
    int j = 0;
    while (item >= r->end[j]) j++;
    const ql_linear_job *job = &r->jobs[j];
    int first = (item - (j ? r->end[j - 1] : 0)) * r->panel[j];
    int n = job->w->n_out - first < r->panel[j] ? job->w->n_out - first : r->panel[j];
    float *scratch = (float *)(void *)(r->scratch + (size_t)thread * r->scratch_stride);
    if (r->few)
        few_rows(r, job, first, n, scratch);
    else
        many_rows(r, job, first, n, scratch);
    if (job->w->bias) add_rows(r, job->y + first, job->ldy, job->w->bias + first, 0, r->n_rows, n);
}

void ql_linear(const ql_kernels *kernels, int n_threads, const ql_linear_job *jobs, int n_jobs,
               int n_rows, void *scratch, size_t scratch_stride) {
    region r = {.kernels = kernels,
                .jobs = jobs,
                .n_jobs = n_jobs,
                .n_rows = n_rows,
                .few = n_rows <= MOST_ROWS_BY_DOTS,
                .scratch = scratch,
                .scratch_stride = scratch_stride};
    int n_items = 0;
    for (int j = 0; j < n_jobs; j++) {
        r.panel[j] = r.few ? few_panel(jobs[j].w) : many_panel(jobs[j].w);
        n_items += (jobs[j].w->n_out + r.panel[j] - 1) / r.panel[j];
        r.end[j] = n_items;
    }
    ql_parallel(n_threads, n_items, run_item, &r);
}

void ql_matrix_row(const ql_kernels *kernels, float *y, const ql_matrix *w, int64_t i) {
    size_t k = (size_t)w->n_in, at = (size_t)i * k;
    if (w->dtype == QL_F32)
        memcpy(y, (const float *)w->data + at, k * sizeof(float));
    else
        kernels->unpack_bf16(y, (const uint16_t *)w->data + at, k);
}
