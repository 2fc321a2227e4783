/* Products with weights of few bits: every CPU variant against the naive twin, by name. */
#include "twins.h"

/* Random strips of n rows, fit to be read up to their last byte and not beyond. */
static uint8_t *strips(bool q4, size_t n, size_t k, size_t *bytes) {
    size_t groups = (k + QL_GROUP - 1) / QL_GROUP, blocks = (k + QL_BLOCK - 1) / QL_BLOCK;
    size_t one = q4 ? blocks * QL_STRIP * 20 : QL_STRIP * (groups * QL_GROUP + sizeof(float));
    *bytes = (n + QL_STRIP - 1) / QL_STRIP * one;
    uint8_t *w = aligned_alloc(64, *bytes);
    for (size_t i = 0; i < *bytes; i++) w[i] = (uint8_t)(128 + 128 * uniform());
    for (uint8_t *strip = w; strip < w + *bytes; strip += one)
        for (size_t i = 0; i < (q4 ? blocks * 2 * QL_STRIP : QL_STRIP); i++) {
            float scale = uniform();
            uint16_t half = (uint16_t)((int)(32768 + 32768 * uniform()) & 0xbfff); /* below 2 */
            if (q4)
                memcpy(strip + i / (2 * QL_STRIP) * QL_STRIP * 20 + i % (2 * QL_STRIP) * 2, &half,
                       2);
            else
                memcpy(strip + groups * QL_GROUP * QL_STRIP + i * sizeof scale, &scale,
                       sizeof scale);
        }
    return w;
}

/* Products are as the twin's, to the bit where the variant adds and multiplies at once as the twin
 * does, and each row alone has the same bits. */
static void integers_case(bool q4, int m, size_t n, size_t k) {
    size_t groups = (k + QL_GROUP - 1) / QL_GROUP, ldy = n + 3, bytes;
    float *x = floats((size_t)m * k), *y = floats((size_t)m * ldy), *alone = floats(n);
    float *z = malloc(((size_t)m * ldy + 1) * sizeof *z);
    void (*multiply)(float *, size_t, const ql_group *, const uint8_t *, int, size_t, size_t,
                     bool) = q4 ? tested->integers->q4 : tested->integers->int8;
    ql_group *a = malloc((size_t)m * groups * sizeof *a);
    uint8_t *w = strips(q4, n, k, &bytes);
    for (int t = 0; t < m; t++)
        naive->integers->round(a + (size_t)t * groups, x + (size_t)t * k, k);
    memcpy(z, y, (size_t)m * ldy * sizeof *z);
    for (int accumulate = 1; accumulate >= 0; accumulate--) {
        multiply(y, ldy, a, w, m, n, k, accumulate);
        for (int t = 0; t < m; t++) {
            memcpy(alone, z + (size_t)t * ldy, n * sizeof *alone); /* as y was */
            multiply(alone, n, a + (size_t)t * groups, w, 1, n, k, accumulate);
            CHECK_SAME_BITS(alone, y + (size_t)t * ldy, n * sizeof *alone);
        }
        (q4 ? naive->integers->q4 : naive->integers->int8)(z, ldy, a, w, m, n, k, accumulate);
        double most = 0; /* of a sum, before it is rounded */
        for (size_t i = 0; i < (size_t)m * ldy; i++) most = fmax(most, fabs((double)z[i]));
        CHECK_NEAR(worst(y, z, (size_t)m * ldy), 0, 1e-6 * sqrt((double)groups) * (1 + most));
        if (!accumulate && strncmp(tested->name, "avx", 3) == 0)
            CHECK_SAME_BITS(y, z, (size_t)m * ldy * sizeof *y);
    }
    free(x), free(y), free(z), free(alone), free(a), free(w);
}

static void integers(void) {
    const size_t ks[] = {1, 31, 32, 33, 64, 65, 96, 100, 576, 1536},
                 ns[] = {1, 8, 16, 33, 63, 64, 150};
    for (int q4 = 0; q4 < 2; q4++)
        for (size_t c = 0; c < sizeof ks / sizeof *ks; c++)
            for (size_t i = 0; i < sizeof ns / sizeof *ns; i++)
                for (int m = 1; m <= 13; m += ks[c] > 100 ? 4 : 1)
                    integers_case(q4, m, ns[i], ks[c]);
}

static void extreme_integers(void) { /* the largest products: nothing saturates or overflows */
    static _Alignas(64) uint8_t w[QL_STRIP * (1024 + 4)], v[QL_STRIP * 20 * 32];
    static ql_group a[16];
    float x[1024], y[QL_STRIP], z[QL_STRIP];
    const float one = 1;
    const uint16_t half = 0x3c00; /* 1 */
    for (int sign = -1; sign <= 1; sign += 2) {
        for (int i = 0; i < 1024; i++) x[i] = (float)sign;
        tested->integers->round(a, x, 1024);
        memset(w, sign < 0 ? 255 : 1, sizeof w);
        memset(v, 255, sizeof v);
        for (int i = 0; i < QL_STRIP; i++) memcpy(w + QL_STRIP * 1024 + 4 * i, &one, sizeof one);
        for (int i = 0; i < 32 * 32; i++) memcpy(v + i / 32 * 320 + i % 32 * 2, &half, sizeof half);
        tested->integers->int8(y, QL_STRIP, a, w, 1, QL_STRIP, 1024, false);
        tested->integers->q4(z, QL_STRIP, a, v, 1, QL_STRIP, 1024, false);
        for (int i = 0; i < QL_STRIP; i++) CHECK_NEAR(y[i], -127.0 * 1024, 0.1);
        for (int i = 0; i < QL_STRIP; i++) CHECK_NEAR(z[i], sign * 16.0 * 1024, 0.01);
    }
}

static void roundings(void) {
    const size_t ks[] = {1, 63, 64, 65, 200, 576};
    for (size_t c = 0; c < sizeof ks / sizeof *ks; c++)
        for (int kind = 0; kind < 8; kind++) {
            size_t groups = (ks[c] + QL_GROUP - 1) / QL_GROUP;
            float *x = floats(ks[c]);
            ql_group *a = malloc(groups * sizeof *a), *b = malloc(groups * sizeof *b);
            const float specials[] = {0, 1e30f, 1e-45f, 1e-25f, INFINITY, -INFINITY, NAN, 127};
            for (size_t i = 0; i < ks[c]; i++) { /* and ties: halves of the step */
                if (kind == 7) x[i] = (float)(int)(250 * x[i]) * 0.5f;
                if (kind < 4) x[i] *= specials[kind];
            }
            x[ks[c] / 2] = specials[kind];
            tested->integers->round(a, x, ks[c]);
            naive->integers->round(b, x, ks[c]);
            for (size_t g = 0; g < groups; g++) {
                if (isnan(b[g].scale)) {
                    CHECK(isnan(a[g].scale));
                    a[g].scale = b[g].scale = 0;
                }
                for (size_t j = 0; j < QL_GROUP && isfinite(specials[kind]) && kind != 2; j++)
                    if (g * QL_GROUP + j < ks[c])
                        CHECK_NEAR(a[g].q[j] * (double)a[g].scale, x[g * QL_GROUP + j],
                                   0.5001 * (double)a[g].scale);
            }
            CHECK_SAME_BITS(a, b, groups * sizeof *a);
            free(x), free(a), free(b);
        }
}

static void all(void) {
    RUN(integers);
    RUN(extreme_integers);
    RUN(roundings);
}

int main(void) {
    each_variant(all);
    return check_report("test_integers");
}
