/* kernels.h - the arithmetic that depends on the instruction set, as one table of functions per CPU
 * variant.
 *
 * Variants: "naive" (plain loops, the twin that every other is tested against), "portable" (what
 * the compiler's baseline gives), "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx".
 * Results are the same for the same variant whatever the number of threads: a function sees one
 * fixed piece of work, and its order of additions depends on its arguments' sizes only. */
#ifndef QL_KERNELS_H
#define QL_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { QL_FEW_ROWS = 4 }; /* most rows of x that the few-row kernels take at once */

/* Products with float32 sums, for many rows, of numbers of one format: bfloat16 or float32. A panel
 * holds some columns of the right hand side, as many as are multiplied at once (fewer take as
 * long), so that it is read from front to back: float32 [k, columns]; bfloat16 two consecutive
 * numbers of a column together, [(k + 1) / 2, columns, 2], or in AMX's tiles of 16 columns, [(k +
 * 31) / 32, columns / 16, 16, 16, 2]. Filled up with zeros, 64-byte aligned. What begins
 * QL_PANEL_DEPTH numbers of each column later is a panel, too. An element of c has the same bits in
 * whatever company it is computed. */
enum { QL_PANEL = 64, QL_PANEL_DEPTH = 32 }; /* most columns; those of every format divide it */

typedef struct ql_panels {
    size_t item; /* bytes of a number: 2 (bfloat16) or 4 */
    int columns; /* of a panel */
    /* For who looks into a panel, as tests do: columns of a tile of it, as it lies in memory, and
     * numbers of a column in a tile. */
    int tile, depth;
    /* panel from the rows of w [n, k], row stride ldw: its columns; 1 <= n <= columns. */
    void (*pack_rows)(void *panel, const void *w, size_t ldw, int n, size_t k);
    /* panel from the columns of v [k, n], row stride ldv; 1 <= n <= columns. */
    void (*pack_columns)(void *panel, const void *v, size_t ldv, int n, size_t k);
    /* c [m, n] = a by panels (+ c), each of `columns` of the n, the next one `stride` bytes behind.
     * a [m, k], row stride lda >= k, of bfloat16 >= k + k % 2 and 0 behind an odd k; c row stride
     * ldc. */
    void (*multiply)(float *c, size_t ldc, const void *a, size_t lda, const void *panels,
                     size_t stride, int m, int n, size_t k, bool accumulate);
    /* The softmax's weights, to be multiplied: y [n] = exp(factor * (x [n] - top)) in this format,
     * where x <= top and factor > 0; returns the sum. Exact as far as the format is. y may begin
     * where x begins. */
    float (*exp_sum)(void *y, const float *x, float factor, float top, size_t n);
    void (*add_scaled)(float *y, const void *x, float factor, size_t n); /* y += factor * x */
} ql_panels;

/* Products with weights of few bits. Both sides are whole numbers, so that sums within a group are
 * exact, whatever the order.
 *
 * x is rounded in groups of QL_GROUP numbers of a row, the last one filled up with zeros: x[j] is
 * about scale * q[j]. A group with a number that is not finite has the scale NaN.
 *
 * Weights lie in strips of QL_STRIP rows, so that a vector holds four numbers of each row; the last
 * strip is filled up with rows of zeros.
 *   int8: for each four columns (their number rounded up to whole groups) [QL_STRIP, 4] bytes, the
 *     weight divided by its row's scale, plus 128; then the scales, float32 [QL_STRIP].
 *   q4: for each block of QL_BLOCK columns (the last one filled up) the factors d, float16
 *     [QL_STRIP]; m, float16 [QL_STRIP]; then [4, QL_STRIP, 4] bytes: byte i of part p holds
 *     column 4 p + i in its low half and column 16 + 4 p + i in its high one. A weight is
 *     d * half + m. */
enum { QL_STRIP = 16, QL_GROUP = 64, QL_BLOCK = 32 };
/* One row of x or a few meet so many strips in turn, from as far apart as a call has them: rows.inc
 * says why. */
enum { QL_STREAMS = 4 };

typedef struct ql_group { /* of x */
    int8_t q[QL_GROUP];
    float scale;
    int32_t sums[QL_GROUP / QL_BLOCK]; /* of q in each block */
} ql_group;

typedef struct ql_integers {
    /* x [k] to groups [(k + QL_GROUP - 1) / QL_GROUP]; the same bits in every variant. */
    void (*round)(ql_group *groups, const float *x, size_t k);
    /* y [m, n] = x wᵀ (+ y). x [m, groups of a row]; w: n rows of k columns in strips, 64-byte
     * aligned; y row stride ldy. A result depends on its own rows of x and w alone. */
    void (*int8)(float *y, size_t ldy, const ql_group *x, const uint8_t *w, int m, size_t n,
                 size_t k, bool accumulate);
    void (*q4)(float *y, size_t ldy, const ql_group *x, const uint8_t *w, int m, size_t n, size_t k,
               bool accumulate);
} ql_integers;

typedef struct ql_kernels {
    const char *name;
    const ql_panels *panels;     /* of bfloat16; NULL: this variant has no such products */
    const ql_panels *panels_f32; /* of float32 */
    bool beats_blas;             /* linear layers go by panels_f32 instead of OpenBLAS's sgemm */
    const ql_integers *integers; /* weights of few bits */

    /* y[t, i] = <x[t, :], w[i, :]> for t < n_x, i < n_w. x [n_x, k], row stride ldx; w [n_w, k],
     * row stride ldw; y [n_x, n_w], row stride ldy; strides in elements; 1 <= n_x <= QL_FEW_ROWS.
     * next: rows of the same format and stride that will be met after w, for which memory is asked
     * meanwhile; or NULL. */
    void (*dots_f32)(float *y, size_t ldy, const float *x, size_t ldx, const float *w, size_t ldw,
                     int n_x, size_t n_w, size_t k, const void *next);
    void (*dots_bf16)(float *y, size_t ldy, const float *x, size_t ldx, const uint16_t *w,
                      size_t ldw, int n_x, size_t n_w, size_t k, const void *next);

    /* y[t, :] += sum over j of p[t, j] * v[j, :]. y [n_p, d], row stride ldy; p [n_p, n], row
     * stride ldp; v [n, d], row stride ldv; 1 <= n_p <= QL_FEW_ROWS; next as above. */
    void (*mix_f32)(float *y, size_t ldy, const float *p, size_t ldp, const float *v, size_t ldv,
                    int n_p, size_t n, size_t d, const void *next);
    void (*mix_bf16)(float *y, size_t ldy, const float *p, size_t ldp, const uint16_t *v,
                     size_t ldv, int n_p, size_t n, size_t d, const void *next);

    void (*unpack_bf16)(float *y, const uint16_t *x, size_t n);
    void (*pack_bf16)(uint16_t *y, const float *x,
                      size_t n); /* nearest, ties to even; NaN stays NaN */

    /* The same with rows of int8: whole numbers of one byte, the largest of which is 127, and
     * behind them the row's scale, float32; a number is its byte times the scale. Rows lie side by
     * side, with any alignment. */
    void (*dots_int8)(float *y, size_t ldy, const float *x, size_t ldx, const int8_t *w, int n_x,
                      size_t n_w, size_t k, const void *next);
    void (*mix_int8)(float *y, size_t ldy, const float *p, size_t ldp, const int8_t *v, int n_p,
                     size_t n, size_t d, const void *next);
    void (*unpack_int8)(float *y, const int8_t *x, size_t n);
    /* Nearest, ties to even, the same bytes in every variant. A row with a number that is not
     * finite has the scale NaN. */
    void (*pack_int8)(int8_t *y, const float *x, size_t n);

    /* y = x / sqrt(mean(x^2) + eps) * w; x, w, y [n]; y may be x */
    void (*rmsnorm)(float *y, const float *x, const float *w, size_t n, float eps);
    void (*swiglu)(float *y, const float *gate, const float *up,
                   size_t n); /* y = gate * sigmoid(gate) * up; y may be gate */
    /* rotate-half RoPE of one head: y[i] = x[i] cos[i] - x[i+d/2] sin[i]; y[i+d/2] = x[i+d/2]
     * cos[i] + x[i] sin[i]; x, y [d], cos, sin [d/2]; y may be x */
    void (*rope)(float *y, const float *x, const float *cos, const float *sin, size_t d);

    float (*max)(const float *x, size_t n); /* -INFINITY for n = 0; NaNs may be passed over */
    /* y = exp(factor * (x - top)), returns the sum; exp(-INFINITY) = 0; y may be x */
    float (*exp_sum)(float *y, const float *x, float factor, float top, size_t n);
    void (*scale)(float *y, const float *x, float factor,
                  size_t n);                         /* y = factor * x; y may be x */
    void (*add)(float *y, const float *x, size_t n); /* y += x */
} ql_kernels;

/* The table of a variant by name, NULL when there is none of that name or this CPU cannot run it;
 * name NULL: the chosen one. */
const ql_kernels *ql_kernels_get(const char *name);

#endif
