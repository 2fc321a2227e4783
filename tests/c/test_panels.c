/* Products by panels: every CPU variant against the naive twin, by name; and results that must not
 * depend on how rows are grouped. */
#include "twins.h"

/* n numbers as a panel's format has them; the naive twin rounds. */
static void *numbers(const ql_panels *format, const float *x, size_t n) {
    return format->item == sizeof(float) ? memcpy(malloc((n + 1) * sizeof *x), x, n * sizeof *x)
                                         : (void *)halves(x, n);
}

/* Number p of column j of a panel, tiles and pairs as kernels.h has them. */
static const void *at(const ql_panels *format, const void *panel, size_t p, size_t j) {
    size_t tile = (size_t)format->tile, depth = (size_t)format->depth, pair = depth > 1 ? 2 : 1,
           n = p / depth * ((size_t)format->columns / tile) + j / tile;
    n = (n * depth + p % depth / pair * pair) * tile + j % tile * pair + p % pair;
    return (const char *)panel + n * format->item;
}

/* Two panels hold the same, as far as ours goes, zeros behind the k numbers of a column too. */
static void same_panels(const ql_panels *ours, const void *panel, const ql_panels *theirs,
                        const void *expected, size_t k) {
    const char zeros[sizeof(float)] = {0};
    size_t depth = (size_t)ours->depth;
    for (size_t p = 0; p < (k + depth - 1) / depth * depth; p++)
        for (size_t j = 0; j < (size_t)ours->columns; j++)
            CHECK_SAME_BITS(at(ours, panel, p, j), p < k ? at(theirs, expected, p, j) : zeros,
                            ours->item);
}

/* Both ways of making a panel hold the same, and products with it are right up to rounding; those
 * of one row alone have the same bits. */
static void panel_case(const ql_panels *ours, const ql_panels *theirs, int m, int n, size_t k) {
    if (n > ours->columns) n = ours->columns;
    size_t even = (k + 1) / 2 * 2, size = (size_t)m * 70,
           bytes = (k + QL_PANEL_DEPTH) * QL_PANEL * sizeof(float);
    bytes -= bytes % 64; /* as aligned_alloc asks for */
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
    memset(panel, 0xff, bytes);
    ours->pack_columns(panel, columns, n, n, k);
    same_panels(ours, panel, theirs, expected, k);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        memcpy(z, y, size * sizeof *z);
        float *last = y + (size_t)(m - 1) * 70;
        memcpy(v, last, (size_t)n * sizeof *v);
        theirs->multiply(z, 70, a, even, expected, 0, m, n, k, accumulate);
        ours->multiply(y, 70, a, even, panel, 0, m, n, k, accumulate);
        for (size_t i = 0; i < size; i++) CHECK_NEAR(y[i], z[i], 3e-6 * sqrt((double)k));
        ours->multiply(v, 70, (char *)a + (size_t)(m - 1) * even * ours->item, even, panel, 0, 1, n,
                       k, accumulate);
        CHECK_SAME_BITS(v, last, (size_t)n * sizeof *v);
    }
    free(x), free(w), free(y), free(z), free(v), free(a), free(rows), free(columns), free(panel);
    free(expected);
}

/* Several panels at once are each of them alone, and what begins later is a panel of the rest. */
static void several_case(const ql_panels *ours, int m) {
    enum { K = 100, LATER = QL_PANEL_DEPTH, LONG = K + QL_PANEL_DEPTH };
    int wide = ours->columns, n = 2 * wide + 5;
    size_t one = (size_t)(LONG * wide) * ours->item, stride = one + 64, row = K * ours->item,
           size = (size_t)(m * n);
    float *x = floats((size_t)m * K), *w = floats((size_t)n * K), *y = floats(size),
          *z = malloc(size * sizeof *z);
    char *a = numbers(ours, x, (size_t)m * K), *rows = numbers(ours, w, (size_t)n * K),
         *panels = aligned_alloc(64, 3 * stride), *rest = aligned_alloc(64, one);
    for (int j = 0; j < n; j += wide)
        ours->pack_rows(panels + j / wide * stride, rows + j * row, K, n - j < wide ? n - j : wide,
                        K);
    ours->multiply(y, n, a, K, panels, stride, m, n, K, false);
    for (int j = 0; j < n; j += wide)
        ours->multiply(z + j, n, a, K, panels + j / wide * stride, 0, m,
                       n - j < wide ? n - j : wide, K, false);
    CHECK_SAME_BITS(y, z, size * sizeof *z);
    ours->pack_rows(rest, rows + LATER * ours->item, K, wide, K - LATER);
    ours->multiply(y, n, a + LATER * ours->item, K, rest, 0, m, wide, K - LATER, false);
    ours->multiply(z, n, a + LATER * ours->item, K, panels + (size_t)(LATER * wide) * ours->item, 0,
                   m, wide, K - LATER, false);
    CHECK_SAME_BITS(y, z, size * sizeof *z);
    free(x), free(w), free(y), free(z), free(a), free(rows), free(panels), free(rest);
}

/* The softmax's weights: their sum, what they add to another row, and untouched ends. */
static void weights_case(const ql_panels *ours, const ql_panels *theirs, size_t n) {
    float x[200], in_place[200], y[200], z[200], sums[200], twin[200];
    for (size_t i = 0; i < 200; i++) {
        x[i] = in_place[i] = i % 7 ? 4 * uniform() - 4 : -60 + 60 * uniform();
        y[i] = z[i] = sums[i] = twin[i] = 7;
    }
    float got = ours->exp_sum(y, x, 0.7f, 0.5f, n), expected = theirs->exp_sum(z, x, 0.7f, 0.5f, n);
    bool exact = ours->item == sizeof(float);
    CHECK_NEAR(got, expected, (exact ? 1e-6 : 1e-4) * expected + 1e-37);
    ours->exp_sum(in_place, in_place, 0.7f, 0.5f, n);
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
    const int shapes[][3] = {{1, 1, 1},   {6, 64, 64},  {7, 63, 33},    {13, 17, 576},
                             {5, 16, 31}, {200, 64, 2}, {12, 48, 1000}, {3, 33, 95},
                             {4, 5, 3},   {2, 8, 64},   {70, 64, 1500}, {50, 40, 700}};
    for (int i = 0; i < 12; i++)
        panel_case(ours, theirs, shapes[i][0], shapes[i][1], (size_t)shapes[i][2]);
    for (int m = 1; m < 70; m += 11) several_case(ours, m);
    for (size_t n = 0; n < 130; n++) weights_case(ours, theirs, n);
    float ends[] = {-INFINITY, -1e30f, -200, 0, NAN}, out[5];
    CHECK_NEAR(ours->exp_sum(out, ends, 1, 0, 4), 1, 1e-4);
    CHECK(ours->exp_sum(out, ends, 1, 0, 3) == 0);
    CHECK(isnan(ours->exp_sum(out, ends, 1, 0, 5)));
}

static void panels(void) {
    panels_of(tested->panels_f32, naive->panels_f32);
    if (tested->panels) panels_of(tested->panels, naive->panels);
}

static void all(void) { RUN(panels); }

int main(void) {
    each_variant(all);
    return check_report("test_panels");
}
