#include "product.h"

#include <string.h>

#include "blas.h"
#include "quant.h"
#include "sizes.h"
#include "strips.h"

/* Few rows: a panel is at most about so many bytes of weights, and whole groups of rows as the
 * kernels take them. Results of the few-row kernels do not depend on panels at all. */
enum { FEW_BYTES = 128 << 10, FEW_GROUP = 8, MOST_FEW_ROWS = 512 };
/* Up to so many rows of x the few-row kernels, called again for each QL_FEW_ROWS rows, are faster
 * than sgemm (float32) or panels (bfloat16). */
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
/* Products by our own panels, packed anew for each piece: so many numbers of a column at a time,
 * and those of float32 met by so many rows of x, that both stay in a core's own cache. Where x is
 * deeper than that, it comes from farther away, and is met by more columns at once. */
enum { PANEL_DEPTH = 1024, ROUNDED_DEPTH = 640, CACHED_ROWS = 48, WIDE_PANEL = 4 * QL_PANEL };
/* So many pieces of a matrix for each thread, or panels are not wide. */
enum { ENOUGH_PIECES = 4 };
/* Products of whole numbers: with so few rows weights come from memory, and pieces are of a number
 * of bytes; with more they are as products of bfloat16. */
enum { MOST_ROWS_BY_BYTES = 4 };

static size_t even(size_t k) { return (k + 1) / 2 * 2; }
static size_t groups_of(size_t k) { return (k + QL_GROUP - 1) / QL_GROUP; }
static bool in_strips(const ql_matrix *w) { return w->dtype == QL_INT8 || w->dtype == QL_Q4; }

/* ---- ways, and x as they take it ---- */

ql_way ql_way_of(const ql_kernels *kernels, const ql_matrix *w, int n_rows) {
    if (in_strips(w)) return QL_BY_INTEGERS;
    if (w->dtype == QL_BF16 && kernels->panels)
        return n_rows <= MOST_ROWS_BEFORE_PANELS ? QL_BY_DOTS : QL_BY_PANELS_BF16;
    if (n_rows <= MOST_ROWS_BY_DOTS) return QL_BY_DOTS;
    return kernels->beats_blas ? QL_BY_PANELS_F32 : QL_BY_SGEMM;
}

bool ql_takes_floats(ql_way way) { return way != QL_BY_INTEGERS && way != QL_BY_PANELS_BF16; }

size_t ql_rounded_bytes(ql_way way, size_t k) {
    if (way == QL_BY_INTEGERS) return groups_of(k) * sizeof(ql_group);
    return ql_takes_floats(way) ? k * sizeof(float) : even(k) * sizeof(uint16_t);
}

size_t ql_rounded_stride(ql_way way, size_t k) {
    size_t bytes = ql_rounded_bytes(way, k);
    if (way == QL_BY_INTEGERS || ql_takes_floats(way)) return bytes;
    /* An odd number of cache lines: columns of x would share a few of the caches' sets. */
    return (ql_aligned(bytes) / 64 | 1) * 64;
}

void ql_round(const ql_kernels *kernels, ql_way way, void *to, const float *x, size_t k) {
    if (way == QL_BY_INTEGERS) {
        kernels->integers->round(to, x, k);
        return;
    }
    kernels->pack_bf16(to, x, k);
    if (k % 2) ((uint16_t *)to)[k] = 0;
}

/* ---- how much of a matrix at once ---- */

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

bool ql_few_rows(ql_way way, int n_rows) {
    return way == QL_BY_DOTS || (way == QL_BY_INTEGERS && n_rows <= MOST_ROWS_BY_BYTES);
}

int ql_piece_rows(const ql_matrix *w, ql_way way, int n_rows, int n_threads) {
    if (ql_few_rows(way, n_rows)) return few_panel(w, n_threads);
    if (way == QL_BY_SGEMM) return many_panel(w);
    bool deep = way == QL_BY_PANELS_BF16 && w->n_in > ROUNDED_DEPTH;
    return deep && w->n_out >= ENOUGH_PIECES * n_threads * WIDE_PANEL ? WIDE_PANEL : QL_PANEL;
}

/* Columns of a panel of bfloat16 that are unpacked at once. */
static int many_columns(const ql_matrix *w) {
    int most = UNPACKED_VALUES / many_panel(w);
    return w->n_in < most ? w->n_in : most;
}

static const ql_panels *format_of(const ql_kernels *kernels, ql_way way) {
    return way == QL_BY_PANELS_BF16 ? kernels->panels : kernels->panels_f32;
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

/* Bytes of the panels of n columns. */
static size_t panels_scratch(const ql_panels *format, const ql_matrix *w, int n) {
    int n_panels = (n + format->columns - 1) / format->columns;
    return panel_bytes(format, panel_depth(format, w)) * (size_t)n_panels;
}

size_t ql_piece_scratch(const ql_kernels *kernels, const ql_matrix *w, ql_way way, int n) {
    if (way == QL_BY_INTEGERS) return 0;
    const ql_panels *format = format_of(kernels, way);
    if (way == QL_BY_PANELS_BF16) return panels_scratch(format, w, n);
    if (way == QL_BY_PANELS_F32) /* and weights unpacked to float32 */
        return panels_scratch(format, w, n) + panel_bytes(format, panel_depth(format, w));
    if (way == QL_BY_DOTS)
        return ql_aligned((size_t)most_few_panel(w) * QL_FEW_ROWS * sizeof(float));
    if (w->dtype == QL_F32) return 0;
    return ql_aligned((size_t)n * (size_t)many_columns(w) * sizeof(float));
}

/* ---- the ways ---- */

static void add_rows(const ql_piece *p, float *y, size_t ldy, const float *x, size_t ldx,
                     int n_rows) {
    for (int t = 0; t < n_rows; t++)
        p->kernels->add(y + (size_t)t * ldy, x + (size_t)t * ldx, (size_t)p->n);
}

/* QL_FEW_ROWS rows of x at a time. */
static void by_dots(const ql_piece *p) {
    const ql_matrix *w = p->w;
    size_t k = (size_t)w->n_in, at = (size_t)p->first * k, ldx = p->row_bytes / sizeof(float);
    for (int t = 0; t < p->rows; t += QL_FEW_ROWS) {
        int n_x = p->rows - t < QL_FEW_ROWS ? p->rows - t : QL_FEW_ROWS;
        const float *x = (const float *)p->x + (size_t)t * ldx;
        float *y = p->y + (size_t)t * p->ldy, *to = p->accumulate ? p->scratch : y;
        size_t ldto = p->accumulate ? (size_t)p->n : p->ldy;
        if (w->dtype == QL_F32)
            p->kernels->dots_f32(to, ldto, x, ldx, (const float *)w->data + at, k, n_x,
                                 (size_t)p->n, k, NULL);
        else
            p->kernels->dots_bf16(to, ldto, x, ldx, (const uint16_t *)w->data + at, k, n_x,
                                  (size_t)p->n, k, NULL);
        if (p->accumulate) add_rows(p, y, p->ldy, to, ldto, n_x);
    }
}

static void by_sgemm(const ql_piece *p) {
    const ql_matrix *w = p->w;
    size_t k = (size_t)w->n_in, at = (size_t)p->first * k, ldx = p->row_bytes / sizeof(float);
    const float *x = (const float *)p->x;
    float *unpacked = p->scratch;
    bool accumulate = p->accumulate;
    if (w->dtype == QL_F32) {
        ql_sgemm_nt(p->y, p->ldy, x, ldx, (const float *)w->data + at, k, p->rows, p->n, w->n_in,
                    accumulate);
        return;
    }
    const uint16_t *from = (const uint16_t *)w->data + at;
    for (int c = 0, width = many_columns(w); c < w->n_in; c += width, accumulate = true) {
        if (width > w->n_in - c) width = w->n_in - c;
        for (int i = 0; i < p->n; i++)
            p->kernels->unpack_bf16(unpacked + i * width, from + (size_t)i * k + c, (size_t)width);
        ql_sgemm_nt(p->y, p->ldy, x + c, ldx, unpacked, (size_t)width, p->rows, p->n, width,
                    accumulate);
    }
}

/* Numbers at ... at + depth - 1 of the piece's weights as panels, one behind the other; unpacked
 * [columns, depth], for panels of float32. */
static void pack_weights(const ql_piece *p, int at, int depth, char *panels, float *unpacked) {
    const ql_panels *format = format_of(p->kernels, p->way);
    size_t k = (size_t)p->w->n_in, item = ql_dtype_block_bytes(p->w->dtype);
    for (int j = 0; j < p->n; j += format->columns, panels += panel_bytes(format, depth)) {
        int wide = p->n - j < format->columns ? p->n - j : format->columns;
        const char *rows =
            (const char *)p->w->data + ((size_t)(p->first + j) * k + (size_t)at) * item;
        if (item == format->item) {
            format->pack_rows(panels, rows, k, wide, (size_t)depth);
            continue;
        }
        for (int i = 0; i < wide; i++)
            p->kernels->unpack_bf16(unpacked + i * depth, (const uint16_t *)rows + i * k,
                                    (size_t)depth);
        format->pack_rows(panels, unpacked, (size_t)depth, wide, (size_t)depth);
    }
}

static void by_panels(const ql_piece *p) {
    const ql_panels *format = format_of(p->kernels, p->way);
    int most = panel_depth(format, p->w), k = p->w->n_in,
        at_once = format->item == sizeof(float) ? CACHED_ROWS : p->rows;
    char *panels = p->scratch;
    float *unpacked = (float *)(panels + panels_scratch(format, p->w, p->n));
    for (int at = 0; at < k; at += most) {
        int depth = k - at < most ? k - at : most;
        pack_weights(p, at, depth, panels, unpacked);
        for (int t = 0; t < p->rows; t += at_once) {
            int m = p->rows - t < at_once ? p->rows - t : at_once;
            format->multiply(p->y + (size_t)t * p->ldy, p->ldy,
                             p->x + (size_t)t * p->row_bytes + (size_t)at * format->item,
                             p->row_bytes / format->item, panels, panel_bytes(format, depth), m,
                             p->n, (size_t)depth, p->accumulate || at > 0);
        }
    }
}

static void by_integers(const ql_piece *p) {
    const ql_matrix *w = p->w;
    const ql_integers *integers = p->kernels->integers;
    size_t k = (size_t)w->n_in;
    const uint8_t *strips =
        (const uint8_t *)w->data + (size_t)p->first / QL_STRIP * ql_strip_bytes(w->dtype, k);
    (w->dtype == QL_INT8 ? integers->int8 : integers->q4)(
        p->y, p->ldy, (const ql_group *)p->x, strips, p->rows, (size_t)p->n, k, p->accumulate);
}

void ql_multiply(const ql_piece *p) {
    switch (p->way) {
    case QL_BY_DOTS: by_dots(p); break;
    case QL_BY_SGEMM: by_sgemm(p); break;
    case QL_BY_PANELS_F32:
    case QL_BY_PANELS_BF16: by_panels(p); break;
    case QL_BY_INTEGERS: by_integers(p); break;
    }
    if (p->w->bias) add_rows(p, p->y, p->ldy, p->w->bias + p->first, 0, p->rows);
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
