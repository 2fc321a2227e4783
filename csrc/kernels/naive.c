/* naive.c - plain loops, one value at a time: the twin that every other variant is tested against.
 * Sums in double. */
#include "variants.h"

#include <math.h>
#include <string.h>

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float from_bf16(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

static uint16_t to_bf16(float value) {
    uint32_t bits = to_bits(value);
    if (isnan(value)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void dots_f32(float *y, size_t ldy, const float *x, size_t ldx, const float *w, size_t ldw,
                     int n_x, size_t n_w, size_t k) {
    for (size_t t = 0; t < (size_t)n_x; t++)
        for (size_t i = 0; i < n_w; i++) {
            double total = 0;
            for (size_t j = 0; j < k; j++) total += (double)x[t * ldx + j] * w[i * ldw + j];
            y[t * ldy + i] = (float)total;
        }
}

static void dots_bf16(float *y, size_t ldy, const float *x, size_t ldx, const uint16_t *w,
                      size_t ldw, int n_x, size_t n_w, size_t k) {
    for (size_t t = 0; t < (size_t)n_x; t++)
        for (size_t i = 0; i < n_w; i++) {
            double total = 0;
            for (size_t j = 0; j < k; j++)
                total += (double)x[t * ldx + j] * from_bf16(w[i * ldw + j]);
            y[t * ldy + i] = (float)total;
        }
}

static void mix_f32(float *y, size_t ldy, const float *p, size_t ldp, const float *v, size_t ldv,
                    int n_p, size_t n, size_t d) {
    for (size_t t = 0; t < (size_t)n_p; t++)
        for (size_t c = 0; c < d; c++) {
            double total = 0;
            for (size_t j = 0; j < n; j++) total += (double)p[t * ldp + j] * v[j * ldv + c];
            y[t * ldy + c] += (float)total;
        }
}

static void mix_bf16(float *y, size_t ldy, const float *p, size_t ldp, const uint16_t *v,
                     size_t ldv, int n_p, size_t n, size_t d) {
    for (size_t t = 0; t < (size_t)n_p; t++)
        for (size_t c = 0; c < d; c++) {
            double total = 0;
            for (size_t j = 0; j < n; j++)
                total += (double)p[t * ldp + j] * from_bf16(v[j * ldv + c]);
            y[t * ldy + c] += (float)total;
        }
}

static void unpack_bf16(float *y, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = from_bf16(x[i]);
}

static void pack_bf16(uint16_t *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = to_bf16(x[i]);
}

static void rmsnorm(float *y, const float *x, const float *w, size_t n, float eps) {
    double total = 0;
    for (size_t i = 0; i < n; i++) total += (double)x[i] * x[i];
    float factor = (float)(1.0 / sqrt(total / (double)n + (double)eps));
    for (size_t i = 0; i < n; i++) y[i] = x[i] * factor * w[i];
}

static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = (float)(gate[i] / (1.0 + exp(-(double)gate[i]))) * up[i];
}

static void rope(float *y, const float *x, const float *cos, const float *sin, size_t d) {
    for (size_t half = d / 2, i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        y[i] = a * cos[i] - b * sin[i];
        y[half + i] = b * cos[i] + a * sin[i];
    }
}

static float maximum(const float *x, size_t n) {
    float most = -INFINITY;
    for (size_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

static float exp_sum(float *x, float shift, size_t n) {
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)exp((double)(x[i] - shift));
        total += x[i];
    }
    return (float)total;
}

static void scale(float *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

static void add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

/* Where a panel of bfloat16 holds number `row` of a column. */
static size_t panel_at(size_t row, int column) {
    return (row / 2 * QL_PANEL + (size_t)column) * 2 + row % 2;
}

static void panel_pack_rows(void *panel, const void *w, size_t ldw, int n, size_t k) {
    for (size_t i = 0; i < (k + 1) / 2 * 2; i++)
        for (int j = 0; j < QL_PANEL; j++)
            ((uint16_t *)panel)[panel_at(i, j)] =
                j < n && i < k ? ((const uint16_t *)w)[j * ldw + i] : 0;
}

static void panel_pack_columns(void *panel, const void *v, size_t ldv, int n, size_t k) {
    for (size_t i = 0; i < (k + 1) / 2 * 2; i++)
        for (int j = 0; j < QL_PANEL; j++)
            ((uint16_t *)panel)[panel_at(i, j)] =
                j < n && i < k ? ((const uint16_t *)v)[i * ldv + j] : 0;
}

static void panel_multiply(float *c, size_t ldc, const void *a, size_t lda, const void *panel,
                           int m, int n, size_t k, float scale, bool accumulate) {
    const uint16_t *left = a, *right = panel;
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (size_t p = 0; p < k; p++)
                sum += (double)from_bf16(left[i * lda + p]) * from_bf16(right[panel_at(p, j)]);
            c[i * ldc + j] = (float)(sum * scale) + (accumulate ? c[i * ldc + j] : 0);
        }
    }
}

static float panel_exp_sum(void *y, const float *x, float shift, size_t n) {
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        float value = (float)exp((double)(x[i] - shift));
        ((uint16_t *)y)[i] = to_bf16(value);
        total += value;
    }
    return (float)total;
}

static void panel_add_scaled(float *y, const void *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += factor * from_bf16(((const uint16_t *)x)[i]);
}

static const ql_panels panels = {sizeof(uint16_t), panel_pack_rows, panel_pack_columns,
                                 panel_multiply,   panel_exp_sum,   panel_add_scaled};

static void product_pack_rows(void *panel, const void *w, size_t ldw, int n, size_t k) {
    for (size_t i = 0; i < k; i++)
        for (int j = 0; j < QL_PANEL; j++)
            ((float *)panel)[i * QL_PANEL + j] = j < n ? ((const float *)w)[j * ldw + i] : 0;
}

static void product_pack_columns(void *panel, const void *v, size_t ldv, int n, size_t k) {
    for (size_t i = 0; i < k; i++)
        for (int j = 0; j < QL_PANEL; j++)
            ((float *)panel)[i * QL_PANEL + j] = j < n ? ((const float *)v)[i * ldv + j] : 0;
}

static void product_multiply(float *c, size_t ldc, const void *a, size_t lda, const void *panel,
                             int m, int n, size_t k, float scale, bool accumulate) {
    const float *left = a, *right = panel;
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (size_t p = 0; p < k; p++)
                sum += (double)left[i * lda + p] * right[p * QL_PANEL + j];
            c[i * ldc + j] = (float)(sum * scale) + (accumulate ? c[i * ldc + j] : 0);
        }
    }
}

static float product_exp_sum(void *y, const float *x, float shift, size_t n) {
    memmove(y, x, n * sizeof *x);
    return exp_sum(y, shift, n);
}

static void product_add_scaled(float *y, const void *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += factor * ((const float *)x)[i];
}

static const ql_panels panels_f32 = {sizeof(float),    product_pack_rows, product_pack_columns,
                                     product_multiply, product_exp_sum,   product_add_scaled};

const ql_kernels ql_kernels_naive = {
    .name = "naive",
    .panels = &panels,
    .panels_f32 = &panels_f32,
    .dots_f32 = dots_f32,
    .dots_bf16 = dots_bf16,
    .mix_f32 = mix_f32,
    .mix_bf16 = mix_bf16,
    .unpack_bf16 = unpack_bf16,
    .pack_bf16 = pack_bf16,
    .rmsnorm = rmsnorm,
    .swiglu = swiglu,
    .rope = rope,
    .max = maximum,
    .exp_sum = exp_sum,
    .scale = scale,
    .add = add,
};
