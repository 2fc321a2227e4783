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
                     int n_x, size_t n_w, size_t k, const void *next) {
    (void)next;
    for (size_t t = 0; t < (size_t)n_x; t++)
        for (size_t i = 0; i < n_w; i++) {
            double total = 0;
            for (size_t j = 0; j < k; j++) total += (double)x[t * ldx + j] * w[i * ldw + j];
            y[t * ldy + i] = (float)total;
        }
}

static void dots_bf16(float *y, size_t ldy, const float *x, size_t ldx, const uint16_t *w,
                      size_t ldw, int n_x, size_t n_w, size_t k, const void *next) {
    (void)next;
    for (size_t t = 0; t < (size_t)n_x; t++)
        for (size_t i = 0; i < n_w; i++) {
            double total = 0;
            for (size_t j = 0; j < k; j++)
                total += (double)x[t * ldx + j] * from_bf16(w[i * ldw + j]);
            y[t * ldy + i] = (float)total;
        }
}

static void mix_f32(float *y, size_t ldy, const float *p, size_t ldp, const float *v, size_t ldv,
                    int n_p, size_t n, size_t d, const void *next) {
    (void)next;
    for (size_t t = 0; t < (size_t)n_p; t++)
        for (size_t c = 0; c < d; c++) {
            double total = 0;
            for (size_t j = 0; j < n; j++) total += (double)p[t * ldp + j] * v[j * ldv + c];
            y[t * ldy + c] += (float)total;
        }
}

static void mix_bf16(float *y, size_t ldy, const float *p, size_t ldp, const uint16_t *v,
                     size_t ldv, int n_p, size_t n, size_t d, const void *next) {
    (void)next;
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

static float scale_behind(const int8_t *row, size_t k) {
    float scale;
    memcpy(&scale, row + k, sizeof scale);
    return scale;
}

static void dots_int8(float *y, size_t ldy, const float *x, size_t ldx, const int8_t *w, int n_x,
                      size_t n_w, size_t k, const void *next) {
    (void)next;
    for (size_t t = 0; t < (size_t)n_x; t++)
        for (size_t i = 0; i < n_w; i++) {
            const int8_t *row = w + i * (k + sizeof(float));
            double total = 0;
            for (size_t j = 0; j < k; j++) total += (double)x[t * ldx + j] * row[j];
            y[t * ldy + i] = (float)(total * scale_behind(row, k));
        }
}

static void mix_int8(float *y, size_t ldy, const float *p, size_t ldp, const int8_t *v, int n_p,
                     size_t n, size_t d, const void *next) {
    (void)next;
    for (size_t t = 0; t < (size_t)n_p; t++)
        for (size_t c = 0; c < d; c++) {
            double total = 0;
            for (size_t j = 0; j < n; j++) {
                const int8_t *row = v + j * (d + sizeof(float));
                total += (double)p[t * ldp + j] * scale_behind(row, d) * row[c];
            }
            y[t * ldy + c] += (float)total;
        }
}

static void unpack_int8(float *y, const int8_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = scale_behind(x, n) * (float)x[i];
}

static void pack_int8(int8_t *y, const float *x, size_t n) {
    float most = 0, scale = 0;
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) finite = false;
        if (fabsf(x[i]) > most) most = fabsf(x[i]);
    }
    if (!finite)
        scale = NAN;
    else if (most >= 0x1p-100f)
        scale = most / 127;
    for (size_t i = 0; i < n; i++) y[i] = (int8_t)(scale > 0 ? lrintf(x[i] * (127 / most)) : 0);
    memcpy(y + n, &scale, sizeof scale);
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

static float exp_sum(float *y, const float *x, float factor, float top, size_t n) {
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        y[i] = (float)exp((double)(factor * (x[i] - top)));
        total += y[i];
    }
    return (float)total;
}

static void scale(float *y, const float *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = factor * x[i];
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

static void panel_multiply(float *c, size_t ldc, const void *a, size_t lda, const void *panels,
                           size_t stride, int m, int n, size_t k, bool accumulate) {
    const uint16_t *left = a;
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            const uint16_t *right =
                (const uint16_t *)((const char *)panels + j / QL_PANEL * stride);
            double sum = 0;
            for (size_t p = 0; p < k; p++)
                sum += (double)from_bf16(left[i * lda + p]) *
                       from_bf16(right[panel_at(p, j % QL_PANEL)]);
            c[i * ldc + j] = (float)sum + (accumulate ? c[i * ldc + j] : 0);
        }
    }
}

static float panel_exp_sum(void *y, const float *x, float factor, float top, size_t n) {
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        float value = (float)exp((double)factor * (x[i] - top));
        ((uint16_t *)y)[i] = to_bf16(value);
        total += value;
    }
    return (float)total;
}

static void panel_add_scaled(float *y, const void *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += factor * from_bf16(((const uint16_t *)x)[i]);
}

static const ql_panels panels = {
    .item = sizeof(uint16_t),
    .columns = QL_PANEL,
    .tile = QL_PANEL,
    .depth = 2,
    .pack_rows = panel_pack_rows,
    .pack_columns = panel_pack_columns,
    .multiply = panel_multiply,
    .exp_sum = panel_exp_sum,
    .add_scaled = panel_add_scaled,
};

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

static void product_multiply(float *c, size_t ldc, const void *a, size_t lda, const void *panels,
                             size_t stride, int m, int n, size_t k, bool accumulate) {
    const float *left = a;
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            const float *right = (const float *)((const char *)panels + j / QL_PANEL * stride);
            double sum = 0;
            for (size_t p = 0; p < k; p++)
                sum += (double)left[i * lda + p] * right[p * QL_PANEL + j % QL_PANEL];
            c[i * ldc + j] = (float)sum + (accumulate ? c[i * ldc + j] : 0);
        }
    }
}

static float product_exp_sum(void *y, const float *x, float factor, float top, size_t n) {
    return exp_sum(y, x, factor, top, n);
}

static void product_add_scaled(float *y, const void *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += factor * ((const float *)x)[i];
}

static const ql_panels panels_f32 = {
    .item = sizeof(float),
    .columns = QL_PANEL,
    .tile = QL_PANEL,
    .depth = 1,
    .pack_rows = product_pack_rows,
    .pack_columns = product_pack_columns,
    .multiply = product_multiply,
    .exp_sum = product_exp_sum,
    .add_scaled = product_add_scaled,
};

static void round_groups(ql_group *groups, const float *x, size_t k) {
    for (size_t first = 0; first < k; first += QL_GROUP) {
        ql_group *group = &groups[first / QL_GROUP];
        float most = 0;
        bool finite = true;
        *group = (ql_group){0};
        for (size_t j = 0; j < QL_GROUP && first + j < k; j++) {
            float size = fabsf(x[first + j]);
            if (!isfinite(size)) finite = false;
            if (size > most) most = size;
        }
        if (!finite) group->scale = NAN;
        if (!finite || most < 0x1p-100f) continue; /* so small a group counts as zeros */
        group->scale = most / 127;
        for (size_t j = 0; j < QL_GROUP && first + j < k; j++) {
            group->q[j] = (int8_t)lrintf(x[first + j] * (127 / most));
            group->sums[j / QL_BLOCK] += group->q[j];
        }
    }
}

static void int8_multiply(float *y, size_t ldy, const ql_group *x, const uint8_t *w, int m,
                          size_t n, size_t k, bool accumulate) {
    size_t groups = (k + QL_GROUP - 1) / QL_GROUP, columns = groups * QL_GROUP;
    for (size_t t = 0; t < (size_t)m; t++)
        for (size_t i = 0; i < n; i++) {
            const uint8_t *strip = w + i / QL_STRIP * QL_STRIP * (columns + sizeof(float));
            float sum = 0, scale;
            for (size_t g = 0; g < groups; g++) {
                const ql_group *group = &x[t * groups + g];
                int products = 0;
                for (size_t j = 0; j < QL_GROUP; j++) {
                    size_t column = g * QL_GROUP + j;
                    size_t at = column / 4 * 4 * QL_STRIP + i % QL_STRIP * 4 + column % 4;
                    products += group->q[j] * (strip[at] - 128);
                }
                sum = fmaf((float)products, group->scale, sum);
            }
            memcpy(&scale, strip + QL_STRIP * columns + i % QL_STRIP * sizeof scale, sizeof scale);
            y[t * ldy + i] = accumulate ? sum * scale + y[t * ldy + i] : sum * scale;
        }
}

static float from_f16(const uint8_t *bytes) {
    uint16_t h;
    memcpy(&h, bytes, sizeof h);
    int exponent = h >> 10 & 31, fraction = h & 1023;
    float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                 : exponent == 0 ? ldexpf((float)fraction, -24)
                                 : ldexpf((float)(fraction + 1024), exponent - 25);
    return h >> 15 ? -size : size;
}

static void q4_multiply(float *y, size_t ldy, const ql_group *x, const uint8_t *w, int m, size_t n,
                        size_t k, bool accumulate) {
    size_t groups = (k + QL_GROUP - 1) / QL_GROUP, blocks = (k + QL_BLOCK - 1) / QL_BLOCK;
    for (size_t t = 0; t < (size_t)m; t++)
        for (size_t i = 0; i < n; i++) {
            float sum = 0, part = 0;
            for (size_t b = 0; b < blocks; b++) {
                const ql_group *group = &x[t * groups + b / 2];
                const uint8_t *block = w + (i / QL_STRIP * blocks + b) * QL_STRIP * 20;
                const uint8_t *halves = block + 4 * QL_STRIP + i % QL_STRIP * 4;
                int products = 0;
                for (size_t j = 0; j < QL_BLOCK; j++) {
                    int both = halves[j % 16 / 4 * 4 * QL_STRIP + j % 4];
                    products += group->q[b % 2 * QL_BLOCK + j] * (j < 16 ? both & 15 : both >> 4);
                }
                float d = from_f16(block + i % QL_STRIP * 2),
                      minimum = from_f16(block + 2 * QL_STRIP + i % QL_STRIP * 2);
                part = fmaf(d, (float)products, b % 2 ? part : 0);
                part = fmaf(minimum, (float)group->sums[b % 2], part);
                if (b % 2 || b + 1 == blocks) sum = fmaf(part, group->scale, sum);
            }
            y[t * ldy + i] = accumulate ? sum + y[t * ldy + i] : sum;
        }
}

static const ql_integers integers = {round_groups, int8_multiply, q4_multiply};

const ql_kernels ql_kernels_naive = {
    .name = "naive",
    .panels = &panels,
    .panels_f32 = &panels_f32,
    .integers = &integers,
    .dots_f32 = dots_f32,
    .dots_bf16 = dots_bf16,
    .mix_f32 = mix_f32,
    .mix_bf16 = mix_bf16,
    .dots_int8 = dots_int8,
    .mix_int8 = mix_int8,
    .unpack_bf16 = unpack_bf16,
    .pack_bf16 = pack_bf16,
    .unpack_int8 = unpack_int8,
    .pack_int8 = pack_int8,
    .rmsnorm = rmsnorm,
    .swiglu = swiglu,
    .rope = rope,
    .max = maximum,
    .exp_sum = exp_sum,
    .scale = scale,
    .add = add,
};
