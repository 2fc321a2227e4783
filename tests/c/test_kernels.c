/* Every CPU variant against the naive twin: odd sizes, unaligned rows, NaN and infinity; and
 * results that must not depend on how rows are grouped. */
#include <stdlib.h>

#include "check.h"
#include "kernels.h"
#include "ql.h"

enum { MOST = 20000 };

static const ql_kernels *naive, *tested;
static uint64_t seed = 1;

/* Uniform in [-1, 1). */
static float uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

static float *floats(size_t n) {
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = uniform();
    return x;
}

static uint16_t *halves(const float *x, size_t n) {
    uint16_t *y = malloc((n + 1) * sizeof *y);
    naive->pack_bf16(y, x, n);
    return y;
}

static double worst(const float *got, const float *expected, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double difference = fabs((double)got[i] - (double)expected[i]);
        if (!(difference <= most)) most = difference;
    }
    return most;
}

static void dots_case(int n_x, size_t n_w, size_t k) {
    size_t ldx = k + 3, ldw = k + 1, ldy = n_w + 2;
    float *x = floats(4 * ldx), *w = floats(n_w * ldw), *y = floats(4 * ldy), *z = floats(4 * ldy);
    uint16_t *h = halves(w, n_w * ldw);
    memcpy(z, y, 4 * ldy * sizeof *z);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        if (bf16) {
            tested->dots_bf16(y, ldy, x, ldx, h, ldw, n_x, n_w, k);
            naive->dots_bf16(z, ldy, x, ldx, h, ldw, n_x, n_w, k);
        } else {
            tested->dots_f32(y, ldy, x, ldx, w, ldw, n_x, n_w, k);
            naive->dots_f32(z, ldy, x, ldx, w, ldw, n_x, n_w, k);
        }
        /* what stands between the rows and behind them is compared as well: it must be untouched */
        CHECK_NEAR(worst(y, z, 4 * ldy), 0, 2e-6 * sqrt((double)k + 1));
        float one, *alone = &one; /* each dot alone has the same bits */
        for (int t = 0; t < n_x; t++)
            for (size_t i = 0; i < n_w; i++) {
                if (bf16)
                    tested->dots_bf16(alone, 1, x + (size_t)t * ldx, ldx, h + i * ldw, ldw, 1, 1,
                                      k);
                else
                    tested->dots_f32(alone, 1, x + (size_t)t * ldx, ldx, w + i * ldw, ldw, 1, 1, k);
                CHECK_SAME_BITS(alone, &y[(size_t)t * ldy + i], sizeof one);
            }
    }
    free(x), free(w), free(y), free(z), free(h);
}

static void dots(void) {
    const size_t ks[] = {1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 33, 64, 80, 100, 576, 1000, 1536, 4096};
    for (size_t c = 0; c < sizeof ks / sizeof *ks; c++)
        for (int n_x = 1; n_x <= QL_FEW_ROWS; n_x++)
            for (size_t n_w = 0; n_w <= 19; n_w += ks[c] > 100 ? 6 : 1) dots_case(n_x, n_w, ks[c]);
}

static void mix_case(int n_p, size_t n, size_t d) {
    size_t ldp = n + 3, ldv = d + 1, ldy = d + 2;
    float *p = floats(4 * ldp), *v = floats(n * ldv), *y = floats(4 * ldy);
    float *z = malloc(4 * ldy * sizeof *z), *before = malloc(4 * ldy * sizeof *before),
          *alone = malloc(d * sizeof *alone);
    uint16_t *h = halves(v, n * ldv);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        memcpy(z, y, 4 * ldy * sizeof *z);
        memcpy(before, y, 4 * ldy * sizeof *z);
        if (bf16) {
            tested->mix_bf16(y, ldy, p, ldp, h, ldv, n_p, n, d);
            naive->mix_bf16(z, ldy, p, ldp, h, ldv, n_p, n, d);
        } else {
            tested->mix_f32(y, ldy, p, ldp, v, ldv, n_p, n, d);
            naive->mix_f32(z, ldy, p, ldp, v, ldv, n_p, n, d);
        }
        CHECK_NEAR(worst(y, z, 4 * ldy), 0, 2e-6 * sqrt((double)n + 1));
        for (int t = 0; t < n_p; t++) { /* each row alone has the same bits */
            memcpy(alone, before + (size_t)t * ldy, d * sizeof *alone);
            if (bf16)
                tested->mix_bf16(alone, d, p + (size_t)t * ldp, ldp, h, ldv, 1, n, d);
            else
                tested->mix_f32(alone, d, p + (size_t)t * ldp, ldp, v, ldv, 1, n, d);
            CHECK_SAME_BITS(alone, y + (size_t)t * ldy, d * sizeof *alone);
        }
    }
    free(p), free(v), free(y), free(z), free(h), free(before), free(alone);
}

static void mix(void) {
    const size_t ds[] = {1, 2, 7, 16, 24, 31, 64, 65, 80, 128, 200}, ns[] = {0, 1, 2, 5, 64, 1000};
    for (size_t c = 0; c < sizeof ds / sizeof *ds; c++)
        for (size_t a = 0; a < sizeof ns / sizeof *ns; a++)
            for (int n_p = 1; n_p <= QL_FEW_ROWS; n_p++) mix_case(n_p, ns[a], ds[c]);
}

/* Rows of int8, rounded by the naive twin. */
static int8_t *bytes(size_t rows, size_t k) {
    size_t stride = k + sizeof(float);
    float *x = floats(rows * k);
    int8_t *y = malloc(rows * stride + 1);
    for (size_t i = 0; i < rows; i++) naive->pack_int8(y + i * stride, x + i * k, k);
    free(x);
    return y;
}

static void dots_int8_case(int n_x, size_t n_w, size_t k) {
    size_t ldx = k + 3, ldy = n_w + 2, stride = k + sizeof(float);
    float *x = floats(4 * ldx), *y = floats(4 * ldy), *z = malloc(4 * ldy * sizeof *z), alone;
    int8_t *w = bytes(n_w, k);
    memcpy(z, y, 4 * ldy * sizeof *z);
    tested->dots_int8(y, ldy, x, ldx, w, n_x, n_w, k);
    naive->dots_int8(z, ldy, x, ldx, w, n_x, n_w, k);
    CHECK_NEAR(worst(y, z, 4 * ldy), 0, 1e-6 * sqrt((double)k + 1));
    for (size_t t = 0; t < (size_t)n_x; t++)
        for (size_t i = 0; i < n_w; i++) {
            tested->dots_int8(&alone, 1, x + t * ldx, ldx, w + i * stride, 1, 1, k);
            CHECK_SAME_BITS(&alone, &y[t * ldy + i], sizeof alone);
        }
    free(x), free(y), free(z), free(w);
}

static void mix_int8_case(int n_p, size_t n, size_t d) {
    size_t ldp = n + 3, ldy = d + 2;
    float *p = floats(4 * ldp), *y = floats(4 * ldy), *z = malloc(4 * ldy * sizeof *z),
          *before = malloc(4 * ldy * sizeof *before);
    int8_t *v = bytes(n, d);
    memcpy(z, y, 4 * ldy * sizeof *z);
    memcpy(before, y, 4 * ldy * sizeof *z);
    tested->mix_int8(y, ldy, p, ldp, v, n_p, n, d);
    naive->mix_int8(z, ldy, p, ldp, v, n_p, n, d);
    CHECK_NEAR(worst(y, z, 4 * ldy), 0, 2e-6 * sqrt((double)n + 1));
    for (size_t t = 0; t < (size_t)n_p; t++) {
        tested->mix_int8(before + t * ldy, ldy, p + t * ldp, ldp, v, 1, n, d);
        CHECK_SAME_BITS(before + t * ldy, y + t * ldy, d * sizeof *y);
    }
    free(p), free(y), free(z), free(v), free(before);
}

/* Rounded and read again with the same bits, whatever the size; what is behind is untouched. */
static void bytes_case(size_t n, float size) {
    float *x = floats(n), *y = floats(n + 1), *z = malloc((n + 1) * sizeof *z), scale;
    int8_t *a = malloc(n + 5), *b = malloc(n + 5);
    memset(a, 7, n + 5), memset(b, 7, n + 5);
    memcpy(z, y, (n + 1) * sizeof *z);
    for (size_t i = 0; i < n; i++) x[i] *= size;
    tested->pack_int8(a, x, n);
    naive->pack_int8(b, x, n);
    CHECK_SAME_BITS(a, b, n + 5);
    tested->unpack_int8(y, a, n);
    naive->unpack_int8(z, a, n);
    CHECK_SAME_BITS(y, z, (n + 1) * sizeof *y);
    memcpy(&scale, a + n, sizeof scale);
    for (size_t i = 0; i < n; i++)
        CHECK_NEAR(y[i], x[i], scale > 0 ? 0.501 * (double)scale : 0x1p-100);
    free(x), free(y), free(z), free(a), free(b);
}

static void rows_of_bytes(void) {
    const size_t ks[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 80, 128, 200},
                 ns[] = {0, 1, 5, 200};
    for (size_t c = 0; c < sizeof ks / sizeof *ks; c++)
        for (int few = 1; few <= QL_FEW_ROWS; few++) {
            for (size_t n_w = 0; n_w <= 11; n_w++) dots_int8_case(few, n_w, ks[c]);
            for (size_t a = 0; a < sizeof ns / sizeof *ns; a++) mix_int8_case(few, ns[a], ks[c]);
        }
    const float sizes[] = {1, 0, 1e-38f, 1e-31f, 0x1p-101f, 1e-20f, 3e38f};
    for (size_t n = 1; n <= 130; n++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) bytes_case(n, sizes[i]);
    float ends[40], got[40], scale;
    int8_t row[44];
    for (int i = 0; i < 40; i++) ends[i] = (float)i - 12.5f; /* halves go to even numbers */
    ends[39] = 127;
    tested->pack_int8(row, ends, 40);
    for (int i = 0; i < 40; i++) CHECK_EQUAL(row[i], i < 39 ? i - 12 - i % 2 : 127);
    for (int bad = 0; bad < 3; bad++) {
        ends[17] = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
        tested->pack_int8(row, ends, 40);
        memcpy(&scale, row + 40, sizeof scale);
        CHECK(isnan(scale));
        tested->unpack_int8(got, row, 40);
        CHECK(isnan(got[0]) && isnan(got[39]));
    }
}

/* n numbers as a panel's format has them; the naive twin rounds. */
static void *numbers(const ql_panels *format, const float *x, size_t n) {
    return format->item == sizeof(float) ? memcpy(malloc((n + 1) * sizeof *x), x, n * sizeof *x)
                                         : (void *)halves(x, n);
}

/* Two panels of k rows hold the same, as far as ours goes. */
static void same_panels(const ql_panels *ours, const void *panel, const ql_panels *theirs,
                        const void *expected, size_t k) {
    if (ours->item != sizeof(float)) { /* one layout for all variants */
        CHECK_SAME_BITS(panel, expected, k * QL_PANEL * ours->item);
        return;
    }
    const float *one = panel, *other = expected;
    for (size_t p = 0; p < k; p++, one += ours->columns, other += theirs->columns)
        CHECK_SAME_BITS(one, other, ours->columns * sizeof *one);
}

/* Both ways of making a panel hold the same, and products with it are right up to rounding; those
 * of one row alone have the same bits. */
static void panel_case(const ql_panels *ours, const ql_panels *theirs, int m, int n, size_t k) {
    if (n > ours->columns) n = ours->columns;
    size_t even = (k + 1) / 2 * 2, bytes = even * QL_PANEL * sizeof(float), size = (size_t)m * 70;
    float *x = floats((size_t)m * even), *w = floats((size_t)n * k), *y = floats(size),
          *z = malloc(size * sizeof *z), *v = malloc(((size_t)n * k + 1) * sizeof *v);
    for (int i = 0; i < m && even > k; i++) x[(size_t)i * even + k] = 0;
    for (int i = 0; i < n; i++)
        for (size_t j = 0; j < k; j++) v[j * n + i] = w[i * k + j];
    void *a = numbers(ours, x, (size_t)m * even), *rows = numbers(ours, w, n * k),
         *columns = numbers(ours, v, n * k);
    char *panel = aligned_alloc(64, bytes), *expected = aligned_alloc(64, bytes);
    memset(panel, 0, bytes), memset(expected, 0, bytes);
    theirs->pack_rows(expected, rows, k, n, k);
    ours->pack_rows(panel, rows, k, n, k);
    same_panels(ours, panel, theirs, expected, k);
    theirs->pack_columns(expected, columns, n, n, k);
    same_panels(ours, panel, theirs, expected, k);
    memset(panel, 0xff, even * QL_PANEL * ours->item);
    ours->pack_columns(panel, columns, n, n, k);
    same_panels(ours, panel, theirs, expected, k);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        memcpy(z, y, size * sizeof *z);
        float *last = y + (size_t)(m - 1) * 70;
        memcpy(v, last, (size_t)n * sizeof *v);
        theirs->multiply(z, 70, a, even, expected, m, n, k, 0.5f, accumulate);
        ours->multiply(y, 70, a, even, panel, m, n, k, 0.5f, accumulate);
        for (size_t i = 0; i < size; i++) CHECK_NEAR(y[i], z[i], 1e-6 * sqrt((double)k));
        ours->multiply(v, 70, (char *)a + (size_t)(m - 1) * even * ours->item, even, panel, 1, n, k,
                       0.5f, accumulate);
        CHECK_SAME_BITS(v, last, (size_t)n * sizeof *v);
    }
    free(x), free(w), free(y), free(z), free(v), free(a), free(rows), free(columns), free(panel);
    free(expected);
}

/* The softmax's weights: their sum, what they add to another row, and untouched ends. */
static void weights_case(const ql_panels *ours, const ql_panels *theirs, size_t n) {
    float x[200], in_place[200], y[200], z[200], sums[200], twin[200];
    for (size_t i = 0; i < 200; i++) {
        x[i] = in_place[i] = i % 7 ? 4 * uniform() - 4 : -60 + 60 * uniform();
        y[i] = z[i] = sums[i] = twin[i] = 7;
    }
    float got = ours->exp_sum(y, x, 0.5f, n), expected = theirs->exp_sum(z, x, 0.5f, n);
    bool exact = ours->item == sizeof(float);
    CHECK_NEAR(got, expected, (exact ? 1e-6 : 1e-4) * expected + 1e-37);
    ours->exp_sum(in_place, in_place, 0.5f, n);
    CHECK_SAME_BITS(in_place, y, n * ours->item);
    CHECK_SAME_BITS((char *)y + n * ours->item, (char *)z + n * ours->item,
                    sizeof y - n * ours->item);
    for (size_t i = 0; i < n && exact; i++) CHECK_NEAR(y[i], z[i], 3e-7 * z[i] + 1.2e-38);
    for (size_t i = 0; i < n && !exact; i++) { /* rounded to one side of the twin's or the other */
        int one = ((uint16_t *)y)[i], other = ((uint16_t *)z)[i];
        CHECK(abs(one - other) <= 1 || other <= 0x80); /* denormal numbers may be 0 */
    }
    ours->add_scaled(sums, y, 0.3f, n);
    theirs->add_scaled(twin, y, 0.3f, n);
    CHECK_NEAR(worst(sums, twin, 200), 0, 1e-6);
}

static void panels_of(const ql_panels *ours, const ql_panels *theirs) {
    const int shapes[][3] = {{1, 1, 1},    {6, 64, 64},    {7, 63, 33}, {13, 17, 576}, {5, 16, 31},
                             {200, 64, 2}, {12, 48, 1000}, {3, 33, 95}, {4, 5, 3},     {2, 8, 64}};
    for (int i = 0; i < 10; i++)
        panel_case(ours, theirs, shapes[i][0], shapes[i][1], (size_t)shapes[i][2]);
    for (size_t n = 0; n < 130; n++) weights_case(ours, theirs, n);
    float ends[] = {-INFINITY, -1e30f, -200, 0, NAN}, out[5];
    CHECK_NEAR(ours->exp_sum(out, ends, 0, 4), 1, 1e-4);
    CHECK(ours->exp_sum(out, ends, 0, 3) == 0);
    CHECK(isnan(ours->exp_sum(out, ends, 0, 5)));
}

static void panels(void) {
    panels_of(tested->panels_f32, naive->panels_f32);
    if (tested->panels) panels_of(tested->panels, naive->panels);
}

static void conversions(void) {
    static uint16_t x[0x10001];
    static float y[0x10001], z[0x10001];
    for (size_t i = 0; i <= 0xffff; i++) x[i] = (uint16_t)i;
    for (size_t first = 0; first < 3; first++) { /* all halves, whatever their place */
        size_t n = 0x10000 - first;
        tested->unpack_bf16(y, x + first, n);
        naive->unpack_bf16(z, x + first, n);
        CHECK_SAME_BITS(y, z, n * sizeof *y);
    }
    static uint16_t a[1 << 16], b[1 << 16];
    for (uint32_t high = 0; high < 0x10000;
         high += 0x101) { /* roundings near each of many bfloat16 values */
        for (uint32_t i = 0; i < 1 << 16; i++) {
            uint32_t bits = (high + (i >> 12)) << 16 | (i & 0xfff) << 4;
            memcpy(&y[i], &bits, sizeof bits);
        }
        tested->pack_bf16(a, y, (1 << 16) - high % 7);
        naive->pack_bf16(b, y, (1 << 16) - high % 7);
        CHECK_SAME_BITS(a, b, ((1 << 16) - high % 7) * sizeof *a);
    }
    float special[] = {NAN, INFINITY, -INFINITY, 1.0f, 1.00390625f, 1.01171875f, -0.0f, 3.4e38f};
    tested->pack_bf16(a, special, 8);
    CHECK((a[0] & 0x7fff) > 0x7f80);
    CHECK_EQUAL(a[1], 0x7f80);
    CHECK_EQUAL(a[2], 0xff80);
    CHECK_EQUAL(a[4], 0x3f80); /* ties go to even */
    CHECK_EQUAL(a[5], 0x3f82);
    CHECK_EQUAL(a[6], 0x8000);
    CHECK_EQUAL(a[7], 0x7f80);
}

static void exponentials(void) {
    static float x[MOST], y[MOST];
    double most = 0, total = 0;
    for (int i = 0; i < MOST; i++) {
        x[i] = y[i] = -87.3f + (float)i * (175.9f / MOST);
        total += exp((double)x[i] - 88.0);
    }
    tested->exp_sum(y, 0, MOST);
    for (int i = 0; i < MOST; i++) {
        double exact = exp((double)x[i]),
               ulp = (double)nextafterf((float)exact, INFINITY) - (double)(float)exact;
        double error = fabs((double)y[i] - exact) / ulp;
        most = error > most ? error : most;
    }
    CHECK_NEAR(most, 0, 2);
    for (int i = 0; i < MOST; i++) y[i] = x[i];
    CHECK_NEAR(tested->exp_sum(y, 88.0f, MOST) / total, 1, 1e-5);
    for (size_t n = 0; n < 70; n++) { /* sums and untouched ends of every size */
        float a[80], b[80];
        for (size_t i = 0; i < 80; i++) a[i] = b[i] = 3 * uniform();
        float got = tested->exp_sum(a, 0.5f, n), expected = naive->exp_sum(b, 0.5f, n);
        CHECK_NEAR(got, expected, 1e-6 * (1 + expected));
        CHECK_NEAR(worst(a, b, 80), 0, 4e-6);
    }
    float ends[] = {-INFINITY, -200, -1e30f, -88, 0, 88.8f, INFINITY, 1e30f};
    const float expected[] = {0, 0, 0, 0, 1, INFINITY, INFINITY, INFINITY};
    tested->exp_sum(ends, 0, 8);
    for (int i = 0; i < 8; i++)
        CHECK(i == 3 ? ends[i] <= 1.2e-38f && ends[i] >= 0 : ends[i] == expected[i]);
    for (size_t at = 0; at < 40; at++) { /* a NaN stays one, and alone */
        float a[40] = {0};
        a[at] = NAN;
        CHECK(isnan(tested->exp_sum(a, 0, 40)));
        for (size_t i = 0; i < 40; i++) CHECK(i == at ? isnan(a[i]) : a[i] == 1);
    }
}

static void gates(void) {
    float gate[100], up[100], y[100], z[100];
    for (size_t n = 0; n <= 100; n += 9) {
        for (size_t i = 0; i < 100; i++) {
            gate[i] = 100 * uniform() * uniform() * uniform();
            up[i] = uniform();
            y[i] = z[i] = 7;
        }
        tested->swiglu(y, gate, up, n);
        naive->swiglu(z, gate, up, n);
        for (size_t i = 0; i < 100; i++) CHECK_NEAR(y[i], z[i], 1e-6 * fabs((double)z[i]) + 3e-37);
        tested->swiglu(gate, gate, up, n);
        CHECK_SAME_BITS(gate, y, n * sizeof *y);
    }
    float large[] = {1000, -1000, INFINITY, 3e38f, -3e38f, NAN}, ones[] = {1, 1, 1, 1, 1, 1},
          out[6];
    tested->swiglu(out, large, ones, 6);
    CHECK(out[0] == 1000 && out[1] == 0 && out[2] == INFINITY && out[3] == 3e38f && out[4] == 0 &&
          isnan(out[5]));
}

static void norms(void) {
    const size_t ns[] = {1, 5, 16, 63, 64, 80, 576, 577, 4096};
    for (size_t c = 0; c < sizeof ns / sizeof *ns; c++) {
        size_t n = ns[c];
        float *x = floats(n), *w = floats(n), *y = floats(n + 1), *z = malloc((n + 1) * sizeof *z);
        memcpy(z, y, (n + 1) * sizeof *z);
        tested->rmsnorm(y, x, w, n, 1e-5f);
        naive->rmsnorm(z, x, w, n, 1e-5f);
        CHECK_NEAR(worst(y, z, n + 1), 0, 1e-6);
        tested->rmsnorm(x, x, w, n, 1e-5f);
        CHECK_SAME_BITS(x, y, n * sizeof *x);
        free(x), free(w), free(y), free(z);
    }
}

static void rotations(void) {
    for (size_t d = 2; d <= 200; d += 2) {
        float *x = floats(d), *c = floats(d / 2), *s = floats(d / 2), *y = floats(d + 1),
              *z = malloc((d + 1) * sizeof *z);
        memcpy(z, y, (d + 1) * sizeof *z);
        tested->rope(y, x, c, s, d);
        naive->rope(z, x, c, s, d);
        CHECK_NEAR(worst(y, z, d + 1), 0, 4e-7);
        tested->rope(x, x, c, s, d);
        CHECK_SAME_BITS(x, y, d * sizeof *x);
        free(x), free(c), free(s), free(y), free(z);
    }
}

static void small_ones(void) {
    CHECK(tested->max(NULL, 0) == -INFINITY);
    for (size_t n = 1; n <= 100; n++) {
        float *x = floats(n + 1), *y = floats(n + 1), *z = malloc((n + 1) * sizeof *z);
        CHECK(tested->max(x, n) == naive->max(x, n));
        memcpy(z, y, (n + 1) * sizeof *z);
        tested->add(y, x, n);
        naive->add(z, x, n);
        CHECK_SAME_BITS(y, z, (n + 1) * sizeof *y);
        tested->scale(y, 0.3f, n);
        naive->scale(z, 0.3f, n);
        CHECK_SAME_BITS(y, z, (n + 1) * sizeof *y);
        x[n / 2] = 5;
        CHECK(tested->max(x, n) == 5);
        x[n / 3] = INFINITY;
        CHECK(tested->max(x, n) == INFINITY);
        for (size_t i = 0; i < n; i++) x[i] = -INFINITY;
        CHECK(tested->max(x, n) == -INFINITY);
        free(x), free(y), free(z);
    }
}

static void
bad_numbers(void) { /* NaN and infinity reach the results that they belong to, and no other */
    for (size_t at = 0; at < 50; at++) {
        float x[50], w[9 * 50], y[9], p[9] = {0}, out[50] = {0};
        for (size_t i = 0; i < 50; i++) x[i] = 1;
        for (size_t i = 0; i < 9 * 50; i++) w[i] = 1;
        w[4 * 50 + at] = at % 2 ? NAN : INFINITY;
        tested->dots_f32(y, 9, x, 50, w, 50, 1, 9, 50);
        tested->mix_f32(out, 50, p, 9, w, 50, 1, 9, 50);
        for (size_t i = 0; i < 9; i++) CHECK(i == 4 ? !isfinite(y[i]) : y[i] == 50);
        for (size_t i = 0; i < 50; i++) CHECK(i == at ? isnan(out[i]) : out[i] == 0);
    }
}

static void names(void) {
    ql_error err = {0};
    const char *list[QL_MAX_VARIANTS];
    int n = ql_cpu_variants(list);
    CHECK(n >= 2);
    CHECK_CONTAINS(ql_cpu_variant(), list[0]);
    for (int i = 0; i < n; i++) {
        CHECK_EQUAL(ql_set_cpu_variant(list[i], &err), QL_OK);
        CHECK_CONTAINS(ql_cpu_variant(), list[i]);
        CHECK(ql_kernels_get(NULL) == ql_kernels_get(list[i]));
    }
    CHECK_EQUAL(ql_set_cpu_variant("sse9", &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "sse9");
    CHECK_CONTAINS(err.text, "naive");
    CHECK(!ql_kernels_get("sse9"));
    CHECK_CONTAINS(ql_cpu_variant(), list[n - 1]);
    CHECK_EQUAL(ql_set_cpu_variant(NULL, &err), QL_OK);
    CHECK_CONTAINS(ql_cpu_variant(), list[0]);
}

int main(void) {
    RUN(names);
    naive = ql_kernels_get("naive");
    const char *list[QL_MAX_VARIANTS];
    int n = ql_cpu_variants(list);
    for (int i = 0; i < n; i++) {
        tested = ql_kernels_get(list[i]);
        int failures = check_failures;
        RUN(dots);
        RUN(mix);
        RUN(rows_of_bytes);
        RUN(panels);
        RUN(conversions);
        RUN(exponentials);
        RUN(gates);
        RUN(norms);
        RUN(rotations);
        RUN(small_ones);
        RUN(bad_numbers);
        printf("%s: %s\n", list[i], check_failures == failures ? "as the twin" : "differs");
    }
    return check_report("test_kernels");
}
