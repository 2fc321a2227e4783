#include "linear.h"

#include "sizes.h"
#include "threads.h"

/* Rows of x in an item that converts them, and the fewest in an item of a product. */
enum { CONVERTED_ROWS = 16, LEAST_ROWS = 64 };

static int min(int a, int b) { return a < b ? a : b; }

/* ---- x as products take it ---- */

typedef struct operand { /* [T, k] */
    const char *rows;
    size_t row_bytes;
} operand;

typedef struct conversion {
    const ql_kernels *kernels;
    ql_way way;
    const float *x;
    size_t ldx, k;
    ql_norm norm;
    int n_rows;
    char *to;
    size_t row_bytes; /* of to */
    float *normed;    /* [n_threads, k], or nothing where products take floats */
} conversion;

static size_t operand_bytes(const ql_matrix *w, ql_way way, int n_rows) {
    return ql_aligned((size_t)n_rows * ql_rounded_stride(way, (size_t)w->n_in));
}

/* Bytes of the room that `take` needs; none where x is taken as it is. */
static size_t room_of_x(const ql_matrix *w, ql_way way, bool normed, int n_threads, int n_rows) {
    if (ql_takes_floats(way)) return normed ? operand_bytes(w, way, n_rows) : 0;
    size_t rows = normed ? (size_t)n_threads * (size_t)w->n_in * sizeof(float) : 0;
    return operand_bytes(w, way, n_rows) + ql_aligned(rows);
}

static void convert_task(void *context, int item, int thread) {
    const conversion *r = context;
    bool floats = ql_takes_floats(r->way);
    for (int t = item * CONVERTED_ROWS; t < min(r->n_rows, (item + 1) * CONVERTED_ROWS); t++) {
        const float *x = r->x + (size_t)t * r->ldx;
        char *to = r->to + (size_t)t * r->row_bytes;
        if (r->norm.weight) {
            float *y = floats ? (float *)to : r->normed + (size_t)thread * r->k;
            r->kernels->rmsnorm(y, x, r->norm.weight, r->k, r->norm.eps);
            x = y;
        }
        if (!floats) ql_round(r->kernels, r->way, to, x, r->k);
    }
}

/* x [n_rows, k], normed, for products that go this way. */
static operand take(const ql_kernels *kernels, int n_threads, const ql_matrix *w, ql_way way,
                    const float *x, size_t ldx, ql_norm norm, int n_rows, char *room) {
    if (ql_takes_floats(way) && !norm.weight)
        return (operand){(const char *)x, ldx * sizeof(float)};
    conversion r = {.kernels = kernels,
                    .way = way,
                    .x = x,
                    .ldx = ldx,
                    .k = (size_t)w->n_in,
                    .norm = norm,
                    .n_rows = n_rows,
                    .to = room,
                    .row_bytes = ql_rounded_stride(way, (size_t)w->n_in),
                    .normed = (float *)(room + operand_bytes(w, way, n_rows))};
    int items = (n_rows + CONVERTED_ROWS - 1) / CONVERTED_ROWS;
    ql_parallel(items > 1 ? n_threads : 1, items, convert_task, &r);
    return (operand){room, r.row_bytes};
}

/* ---- items: some rows of x by some rows of W ---- */

typedef struct items {
    int panel; /* rows of W */
    int rows;  /* of x */
    int n_panels, n;
} items;

/* Whether so many items leave more than an eighth of the threads' time unused. */
static bool uneven(int n_items, int n_threads) {
    int rounds = (n_items + n_threads - 1) / n_threads;
    return 8 * (rounds * n_threads - n_items) > n_items;
}

/* How often rows of x are halved so that n_panels go evenly on the threads. Not with few of them,
 * nor by sgemm, whose bits may depend on it. */
static int pieces_of(ql_way way, int n_rows, int n_panels, int n_threads) {
    int pieces = 1;
    if (ql_few_rows(way, n_rows) || way == QL_BY_SGEMM) return pieces;
    while (uneven(n_panels * pieces, n_threads) && n_rows / (2 * pieces) >= LEAST_ROWS) pieces *= 2;
    return pieces;
}

static items cut(int n_out, int panel, int n_rows, int pieces) {
    items c = {.panel = panel, .rows = (n_rows + pieces - 1) / pieces};
    c.n_panels = (n_out + panel - 1) / panel;
    c.n = c.n_panels * ((n_rows + c.rows - 1) / c.rows);
    return c;
}

/* Which part of a product an item is: all but y and the scratch; from: its first row. */
static ql_piece piece_of(const ql_kernels *kernels, const ql_matrix *w, ql_way way, operand x,
                         int n_rows, const items *c, int item, int *from) {
    int first = item % c->n_panels * c->panel;
    *from = item / c->n_panels * c->rows;
    return (ql_piece){.kernels = kernels,
                      .way = way,
                      .w = w,
                      .first = first,
                      .n = min(c->panel, w->n_out - first),
                      .x = x.rows + (size_t)*from * x.row_bytes,
                      .row_bytes = x.row_bytes,
                      .rows = min(c->rows, n_rows - *from)};
}

/* ---- products side by side ---- */

typedef struct region {
    const ql_kernels *kernels;
    const ql_linear_job *jobs;
    operand x;
    ql_way way;
    int n_rows;
    items items[QL_MAX_JOBS];
    int end[QL_MAX_JOBS]; /* items of this job and those before it */
    char *scratch;
    size_t scratch_stride; /* bytes of each thread */
} region;

static void product_task(void *context, int item, int thread) {
    const region *r = context;
    int j = 0, from;
    while (item >= r->end[j]) j++;
    if (j) item -= r->end[j - 1];
    const ql_linear_job *job = &r->jobs[j];
    ql_piece p = piece_of(r->kernels, job->w, r->way, r->x, r->n_rows, &r->items[j], item, &from);
    p.y = job->y + (size_t)from * job->ldy + p.first;
    p.ldy = job->ldy;
    p.accumulate = job->accumulate;
    p.scratch = r->scratch + (size_t)thread * r->scratch_stride;
    ql_multiply(&p);
}

/* Jobs that go the same way; scratch: of the threads. */
static void run(const ql_kernels *kernels, int n_threads, const ql_linear_job *jobs, int n_jobs,
                operand x, int n_rows, char *scratch) {
    region r = {.kernels = kernels, .jobs = jobs, .x = x, .n_rows = n_rows, .scratch = scratch};
    r.way = ql_way_of(kernels, jobs[0].w, n_rows);
    int panels[QL_MAX_JOBS], n_panels = 0, n_items = 0;
    for (int j = 0; j < n_jobs; j++) {
        const ql_matrix *w = jobs[j].w;
        panels[j] = ql_piece_rows(w, r.way, n_rows, n_threads);
        r.scratch_stride =
            ql_larger(r.scratch_stride, ql_piece_scratch(kernels, w, r.way, panels[j]));
        n_panels += (w->n_out + panels[j] - 1) / panels[j];
    }
    int pieces = pieces_of(r.way, n_rows, n_panels, n_threads);
    for (int j = 0; j < n_jobs; j++) {
        r.items[j] = cut(jobs[j].w->n_out, panels[j], n_rows, pieces);
        n_items += r.items[j].n;
        r.end[j] = n_items;
    }
    ql_parallel(n_threads, n_items, product_task, &r);
}

void ql_linear(const ql_kernels *kernels, int n_threads, const ql_linear_job *jobs, int n_jobs,
               int n_rows, void *scratch) {
    for (int first = 0, end; first < n_jobs; first = end) {
        const ql_linear_job *job = &jobs[first];
        ql_way way = ql_way_of(kernels, job->w, n_rows);
        for (end = first + 1; end < n_jobs && ql_way_of(kernels, jobs[end].w, n_rows) == way;)
            end++;
        operand x =
            take(kernels, n_threads, job->w, way, job->x, job->ldx, job->norm, n_rows, scratch);
        run(kernels, n_threads, job, end - first, x, n_rows,
            (char *)scratch + room_of_x(job->w, way, job->norm.weight, n_threads, n_rows));
    }
}

static size_t piece_scratch(const ql_kernels *kernels, int n_threads, const ql_matrix *w,
                            int n_rows) {
    ql_way way = ql_way_of(kernels, w, n_rows);
    return ql_piece_scratch(kernels, w, way, ql_piece_rows(w, way, n_rows, n_threads));
}

size_t ql_linear_scratch(const ql_kernels *kernels, int n_threads, const ql_matrix *w, bool normed,
                         int n_rows) {
    size_t room = 0, piece = 0;
    const int rows[] = {n_rows, 1};
    for (int i = 0; i < 2; i++) { /* there may be fewer rows, which go another way */
        ql_way way = ql_way_of(kernels, w, rows[i]);
        room = ql_larger(room, room_of_x(w, way, normed, n_threads, n_rows));
        piece = ql_larger(piece, piece_scratch(kernels, n_threads, w, rows[i]));
    }
    return room + (size_t)n_threads * piece;
}

/* ---- SwiGLU ---- */

typedef struct gating {
    const ql_kernels *kernels;
    const ql_mlp *w;
    ql_way gate, up, down;
    int n_rows;
    items items;
    size_t piece_bytes;    /* of the gate's or up's part in an item, [rows, panel] of float32 */
    size_t scratch_stride; /* of each thread: two of those, and what their products need */
    size_t row_bytes;      /* of hidden */
    operand x_gate, x_up;  /* one and the same where they go the same way */
    char *hidden;          /* [T, F] as down takes it */
    char *scratch;
} gating;

/* Rows of gate and up in an item: as of a product, half as many where sgemm multiplies, so that
 * there are as many items as of two products; but whole groups of x for what follows, and whole
 * strips of both. */
static int gated_rows(const gating *r, int n_threads) {
    bool by_up = r->up == QL_BY_SGEMM;
    ql_way way = by_up ? r->up : r->gate;
    int rows = ql_piece_rows(by_up ? r->w->up : r->w->gate, way, r->n_rows, n_threads);
    if (way == QL_BY_SGEMM) rows = (rows / 2 + QL_STRIP - 1) / QL_STRIP * QL_STRIP;
    if (r->gate == r->up && ql_takes_floats(r->down)) return rows;
    return (rows + QL_GROUP - 1) / QL_GROUP * QL_GROUP;
}

/* All but where the operands and the scratch are. */
static gating plan_mlp(const ql_kernels *kernels, int n_threads, const ql_mlp *w, int n_rows) {
    gating r = {.kernels = kernels,
                .w = w,
                .gate = ql_way_of(kernels, w->gate, n_rows),
                .up = ql_way_of(kernels, w->up, n_rows),
                .down = ql_way_of(kernels, w->down, n_rows),
                .n_rows = n_rows};
    r.row_bytes = ql_rounded_stride(r.down, (size_t)w->down->n_in);
    int panel = gated_rows(&r, n_threads), F = w->gate->n_out;
    ql_way way = r.up == QL_BY_SGEMM ? r.up : r.gate;
    r.items = cut(F, panel, n_rows, pieces_of(way, n_rows, (F + panel - 1) / panel, n_threads));
    r.piece_bytes = ql_aligned((size_t)r.items.rows * (size_t)panel * sizeof(float));
    r.scratch_stride =
        2 * r.piece_bytes + ql_larger(ql_piece_scratch(kernels, w->gate, r.gate, panel),
                                      ql_piece_scratch(kernels, w->up, r.up, panel));
    return r;
}

static void gated_task(void *context, int item, int thread) {
    const gating *r = context;
    int from;
    ql_piece gate = piece_of(r->kernels, r->w->gate, r->gate, r->x_gate, r->n_rows, &r->items, item,
                             &from),
             up = piece_of(r->kernels, r->w->up, r->up, r->x_up, r->n_rows, &r->items, item, &from);
    char *scratch = r->scratch + (size_t)thread * r->scratch_stride;
    size_t n = (size_t)gate.n;
    gate.y = (float *)scratch;
    up.y = (float *)(scratch + r->piece_bytes);
    gate.ldy = up.ldy = n;
    gate.scratch = up.scratch = scratch + 2 * r->piece_bytes;
    ql_multiply(&gate);
    ql_multiply(&up);
    bool floats = ql_takes_floats(r->down);
    char *to =
        r->hidden + (size_t)from * r->row_bytes + ql_rounded_bytes(r->down, (size_t)gate.first);
    for (int t = 0; t < gate.rows; t++, to += r->row_bytes) {
        float *row = gate.y + (size_t)t * n;
        r->kernels->swiglu(floats ? (float *)to : row, row, up.y + (size_t)t * n, n);
        if (!floats) ql_round(r->kernels, r->down, to, row, n);
    }
}

size_t ql_mlp_scratch(const ql_kernels *kernels, int n_threads, const ql_mlp *w, int n_rows) {
    gating r = plan_mlp(kernels, n_threads, w, n_rows);
    size_t gated = (size_t)min(n_threads, r.items.n) * r.scratch_stride,
           down = (size_t)n_threads * piece_scratch(kernels, n_threads, w->down, n_rows);
    bool normed = w->norm.weight;
    return operand_bytes(w->down, r.down, n_rows) +
           room_of_x(w->gate, r.gate, normed, n_threads, n_rows) +
           (r.up != r.gate ? room_of_x(w->up, r.up, normed, n_threads, n_rows) : 0) +
           ql_larger(gated, down);
}

void ql_mlp_add(const ql_kernels *kernels, int n_threads, const ql_mlp *w, float *y, const float *x,
                int n_rows, void *scratch) {
    gating r = plan_mlp(kernels, n_threads, w, n_rows);
    size_t E = (size_t)w->gate->n_in;
    r.hidden = scratch;
    r.scratch = r.hidden + operand_bytes(w->down, r.down, n_rows);
    r.x_gate = r.x_up = take(kernels, n_threads, w->gate, r.gate, x, E, w->norm, n_rows, r.scratch);
    r.scratch += room_of_x(w->gate, r.gate, w->norm.weight, n_threads, n_rows);
    if (r.up != r.gate) {
        r.x_up = take(kernels, n_threads, w->up, r.up, x, E, w->norm, n_rows, r.scratch);
        r.scratch += room_of_x(w->up, r.up, w->norm.weight, n_threads, n_rows);
    }
    ql_parallel(n_threads, r.items.n, gated_task, &r);
    ql_linear_job down = {.y = y, .w = w->down, .ldy = E, .accumulate = true};
    run(kernels, n_threads, &down, 1, (operand){r.hidden, r.row_bytes}, n_rows, r.scratch);
}
