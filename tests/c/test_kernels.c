/* Every CPU variant against the naive twin: odd sizes, unaligned rows, NaN and infinity; and
 * results that must not depend on how rows are grouped. */
#include "twins.h"

enum { MOST = 20000 };

/* What is met next is asked of memory, never read: no address harms. */
#define NOWHERE ((const void *)4096)

static void dots_case(int n_x, size_t n_w, size_t k) {
    size_t ldx = k + 3, ldw = k + 1, ldy = n_w + 2;
    float *x = floats(4 * ldx), *w = floats(n_w * ldw), *y = floats(4 * ldy), *z = floats(4 * ldy);
    uint16_t *h = halves(w, n_w * ldw);
    memcpy(z, y, 4 * ldy * sizeof *z);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        if (bf16) {
            tested->dots_bf16(y, ldy, x, ldx, h, ldw, n_x, n_w, k, NOWHERE);
            naive->dots_bf16(z, ldy, x, ldx, h, ldw, n_x, n_w, k, NULL);
        } else {
            tested->dots_f32(y, ldy, x, ldx, w, ldw, n_x, n_w, k, NOWHERE);
            naive->dots_f32(z, ldy, x, ldx, w, ldw, n_x, n_w, k, NULL);
        }
        /* what stands between the rows and behind them is compared as well: it must be untouched */
        CHECK_NEAR(worst(y, z, 4 * ldy), 0, 2e-6 * sqrt((double)k + 1));
        float one, *alone = &one; /* each dot alone has the same bits */
        for (int t = 0; t < n_x; t++)
            for (size_t i = 0; i < n_w; i++) {
                if (bf16)
                    tested->dots_bf16(alone, 1, x + (size_t)t * ldx, ldx, h + i * ldw, ldw, 1, 1, k,
                                      NOWHERE);
                else
                    tested->dots_f32(alone, 1, x + (size_t)t * ldx, ldx, w + i * ldw, ldw, 1, 1, k,
                                     NOWHERE);
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
            tested->mix_bf16(y, ldy, p, ldp, h, ldv, n_p, n, d, NOWHERE);
            naive->mix_bf16(z, ldy, p, ldp, h, ldv, n_p, n, d, NULL);
        } else {
            tested->mix_f32(y, ldy, p, ldp, v, ldv, n_p, n, d, NOWHERE);
            naive->mix_f32(z, ldy, p, ldp, v, ldv, n_p, n, d, NULL);
        }
        CHECK_NEAR(worst(y, z, 4 * ldy), 0, 2e-6 * sqrt((double)n + 1));
        for (int t = 0; t < n_p; t++) { /* each row alone has the same bits */
            memcpy(alone, before + (size_t)t * ldy, d * sizeof *alone);
            if (bf16)
                tested->mix_bf16(alone, d, p + (size_t)t * ldp, ldp, h, ldv, 1, n, d, NOWHERE);
            else
                tested->mix_f32(alone, d, p + (size_t)t * ldp, ldp, v, ldv, 1, n, d, NOWHERE);
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
    tested->dots_int8(y, ldy, x, ldx, w, n_x, n_w, k, NOWHERE);
    naive->dots_int8(z, ldy, x, ldx, w, n_x, n_w, k, NULL);
    CHECK_NEAR(worst(y, z, 4 * ldy), 0, 1e-6 * sqrt((double)k + 1));
    for (size_t t = 0; t < (size_t)n_x; t++)
        for (size_t i = 0; i < n_w; i++) {
            tested->dots_int8(&alone, 1, x + t * ldx, ldx, w + i * stride, 1, 1, k, NOWHERE);
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
    tested->mix_int8(y, ldy, p, ldp, v, n_p, n, d, NOWHERE);
    naive->mix_int8(z, ldy, p, ldp, v, n_p, n, d, NULL);
    CHECK_NEAR(worst(y, z, 4 * ldy), 0, 2e-6 * sqrt((double)n + 1));
    for (size_t t = 0; t < (size_t)n_p; t++) {
        tested->mix_int8(before + t * ldy, ldy, p + t * ldp, ldp, v, 1, n, d, NOWHERE);
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
    tested->exp_sum(y, y, 1, 0, MOST);
    for (int i = 0; i < MOST; i++) {
        double exact = exp((double)x[i]),
               ulp = (double)nextafterf((float)exact, INFINITY) - (double)(float)exact;
        double error = fabs((double)y[i] - exact) / ulp;
        most = error > most ? error : most;
    }
    CHECK_NEAR(most, 0, 2);
    for (int i = 0; i < MOST; i++) y[i] = x[i];
    CHECK_NEAR(tested->exp_sum(y, y, 1, 88.0f, MOST) / total, 1, 1e-5);
    for (size_t n = 0; n < 70; n++) { /* sums and untouched ends of every size */
        float a[80], b[80];
        for (size_t i = 0; i < 80; i++) a[i] = b[i] = 3 * uniform();
        float got = tested->exp_sum(a, a, 0.7f, 0.5f, n),
              expected = naive->exp_sum(b, b, 0.7f, 0.5f, n);
        CHECK_NEAR(got, expected, 1e-6 * (1 + expected));
        CHECK_NEAR(worst(a, b, 80), 0, 4e-6);
    }
    float ends[] = {-INFINITY, -200, -1e30f, -88, 0, 88.8f, INFINITY, 1e30f};
    const float expected[] = {0, 0, 0, 0, 1, INFINITY, INFINITY, INFINITY};
    tested->exp_sum(ends, ends, 1, 0, 8);
    for (int i = 0; i < 8; i++)
        CHECK(i == 3 ? ends[i] <= 1.2e-38f && ends[i] >= 0 : ends[i] == expected[i]);
    const uint32_t nans[] = {0x7fc00000, 0x7fc00001, 0x7fc000ff, 0x7fc001ff, 0xffc00155};
    for (size_t at = 0; at < 40; at++) { /* a NaN stays one whatever its bits, and alone */
        float a[40] = {0};
        memcpy(&a[at], &nans[at % 5], sizeof a[at]);
        CHECK(isnan(tested->exp_sum(a, a, 1, 0, 40)));
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
        tested->scale(y, y, 0.3f, n);
        naive->scale(z, z, 0.3f, n);
        CHECK_SAME_BITS(y, z, (n + 1) * sizeof *y);
        tested->scale(y, x, 0.7f, n);
        naive->scale(z, x, 0.7f, n);
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
        tested->dots_f32(y, 9, x, 50, w, 50, 1, 9, 50, NOWHERE);
        tested->mix_f32(out, 50, p, 9, w, 50, 1, 9, 50, NOWHERE);
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

static void all(void) {
    RUN(dots);
    RUN(mix);
    RUN(rows_of_bytes);
    RUN(conversions);
    RUN(exponentials);
    RUN(gates);
    RUN(norms);
    RUN(rotations);
    RUN(small_ones);
    RUN(bad_numbers);
}

int main(void) {
    RUN(names);
    each_variant(all);
    return check_report("test_kernels");
}
