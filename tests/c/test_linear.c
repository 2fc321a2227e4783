/* Linear layers against plain double loops, for few and many rows, every way of holding weights;
 * the same bits for any number of threads, with OpenBLAS's own kernels for this CPU and with those
 * named Haswell (the program runs itself again). */
#include <stdlib.h>
#include <unistd.h>

#include "blas.h"
#include "check.h"
#include "held.h"
#include "linear.h"
#include "strips.h"
#include "threads.h"

enum { MOST_THREADS = 5 };

static const ql_dtype ways[] = {QL_F32, QL_BF16, QL_INT8, QL_Q4};
enum { N_WAYS = 4 };

static uint64_t seed = 1;

static float uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

static float *floats(size_t n) {
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = uniform();
    return x;
}

/* Numbers that bfloat16 and groups of int8 hold exactly (products round x, which then changes
 * nothing): multiples of 1/128, the largest in every eight. */
static float *whole_numbers(size_t n) {
    float *x = floats(n);
    for (size_t i = 0; i < n; i++)
        x[i] = i % 8 ? (float)(int)(127 * x[i]) / 128 : (i % 16 ? 127 : -127) / 128.0f;
    return x;
}

typedef struct layer {
    ql_matrix w;
    float *plain; /* the matrix as float32, [n_out, n_in] */
    void *held;
    float *bias;
} layer;

static layer make(int n_in, int n_out, ql_dtype dtype, bool bias) {
    const ql_kernels *kernels = ql_kernels_get("naive");
    size_t rows = (size_t)n_out, columns = (size_t)n_in;
    size_t bytes = (ql_held_bytes(dtype, rows, columns) + 63) / 64 * 64;
    layer l = {
        .plain = floats(rows * columns), .held = aligned_alloc(64, bytes), .bias = floats(rows)};
    CHECK_EQUAL(ql_hold(l.held, dtype, l.plain, QL_F32, rows, columns, kernels, 2), QL_OK);
    l.w = (ql_matrix){
        .data = l.held, .bias = bias ? l.bias : NULL, .n_out = n_out, .n_in = n_in, .dtype = dtype};
    for (int i = 0; i < n_out; i++) ql_matrix_row(kernels, l.plain + (size_t)i * columns, &l.w, i);
    return l;
}

static void unmake(layer *l) { free(l->plain), free(l->held), free(l->bias); }

/* One thread's own work, which ThreadSanitizer need not watch: half of the time there. */
#define UNWATCHED __attribute__((no_sanitize("thread")))
#ifdef __SANITIZE_THREAD__
enum { BIASED_STEP = 3 }; /* of numbers of rows that are tried with a bias: every third one there */
#else
enum { BIASED_STEP = 1 };
#endif

/* The largest error of y, and 1 where something between the rows was touched. */
UNWATCHED static double error_of(const layer *l, const float *y, const float *before, size_t ldy,
                                 const float *x, size_t ldx, int n_rows, bool accumulate) {
    double worst = 0;
    for (int t = 0; t < n_rows; t++)
        for (size_t i = 0; i < ldy; i++) {
            size_t at = (size_t)t * ldy + i;
            double expected = before[at];
            if (i < (size_t)l->w.n_out) {
                expected =
                    (accumulate ? (double)before[at] : 0) + (l->w.bias ? (double)l->bias[i] : 0);
                for (int j = 0; j < l->w.n_in; j++)
                    expected += (double)x[(size_t)t * ldx + (size_t)j] *
                                l->plain[i * (size_t)l->w.n_in + (size_t)j];
            }
            double error = fabs(y[at] - expected);
            if (!(error <= worst)) worst = error;
        }
    return worst;
}

/* All layers, of the same n_in, in one region: right, and the same bits for every number of
 * threads. */
static void check_layers(layer *layers, int n, int n_rows, bool accumulate) {
    const ql_kernels *kernels = ql_kernels_get(NULL);
    int n_in = layers[0].w.n_in;
    size_t ldx = (size_t)n_in + 5, n_bytes = 64;
    float *x = whole_numbers((size_t)n_rows * ldx), *y[QL_MAX_JOBS], *before[QL_MAX_JOBS],
          *first[QL_MAX_JOBS];
    size_t ldy[QL_MAX_JOBS], bytes[QL_MAX_JOBS];
    ql_linear_job jobs[QL_MAX_JOBS];
    for (int j = 0; j < n; j++) {
        ldy[j] = (size_t)layers[j].w.n_out + 3;
        bytes[j] = (size_t)n_rows * ldy[j] * sizeof(float);
        before[j] = floats((size_t)n_rows * ldy[j]);
        y[j] = malloc(bytes[j]);
        first[j] = malloc(bytes[j]);
        jobs[j] = (ql_linear_job){.y = y[j],
                                  .x = x,
                                  .w = &layers[j].w,
                                  .ldy = ldy[j],
                                  .ldx = ldx,
                                  .accumulate = accumulate};
        size_t needs = ql_linear_scratch(kernels, MOST_THREADS, &layers[j].w, false, n_rows);
        n_bytes = needs > n_bytes ? needs : n_bytes;
    }
    float *scratch = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    const int threads[] = {1, 2, 3, 5};
    for (int c = 0; c < 4; c++) {
        for (int j = 0; j < n; j++) memcpy(y[j], before[j], bytes[j]);
        ql_linear(kernels, threads[c], jobs, n, n_rows, scratch);
        for (int j = 0; j < n; j++)
            if (c == 0) {
                memcpy(first[j], y[j], bytes[j]);
                CHECK_NEAR(
                    error_of(&layers[j], y[j], before[j], ldy[j], x, ldx, n_rows, accumulate), 0,
                    3e-6 * sqrt(n_in));
            } else {
                CHECK_SAME_BITS(y[j], first[j], bytes[j]);
            }
    }
    for (int j = 0; j < n; j++) free(y[j]), free(before[j]), free(first[j]);
    free(x), free(scratch);
}

/* rows of x, normed by themselves: [n_rows, n]. */
static float *normed(const float *x, ql_norm norm, int n_rows, size_t n) {
    float *y = malloc((size_t)n_rows * n * sizeof *y);
    for (size_t at = 0; at < (size_t)n_rows * n; at += n)
        ql_kernels_get(NULL)->rmsnorm(y + at, x + at, norm.weight, n, norm.eps);
    return y;
}

/* A norm on the way has the bits of a norm before. */
static void norms(void) {
    const int rows[] = {1, 4, 5, 70, 130}, threads[] = {1, 2, 5};
    const char *names[QL_MAX_VARIANTS];
    int n_variants = ql_cpu_variants(names);
    for (int i = 0; i < 5 * N_WAYS * n_variants; i++) {
        CHECK_EQUAL(ql_set_cpu_variant(names[i / (5 * N_WAYS)], NULL), QL_OK);
        const ql_kernels *kernels = ql_kernels_get(NULL);
        layer l = make(101, 90, ways[i / 5 % N_WAYS], true);
        int n = rows[i % 5];
        size_t bytes = (size_t)n * 90 * sizeof(float),
               room = ql_linear_scratch(kernels, MOST_THREADS, &l.w, true, n);
        float *weight = floats(101), *x = floats((size_t)n * 101), *y = malloc(bytes),
              *expected = malloc(bytes);
        char *scratch = aligned_alloc(64, (room + 63) / 64 * 64);
        ql_norm norm = {weight, 1e-5f};
        float *before = normed(x, norm, n, 101);
        ql_linear_job job = {.y = expected, .x = before, .w = &l.w, .ldy = 90, .ldx = 101};
        ql_linear(kernels, 1, &job, 1, n, scratch);
        job = (ql_linear_job){.y = y, .x = x, .w = &l.w, .ldy = 90, .ldx = 101, .norm = norm};
        for (int c = 0; c < 3; c++) {
            memset(scratch, 0xff, room);
            memset(y, 0xff, bytes);
            ql_linear(kernels, threads[c], &job, 1, n, scratch);
            CHECK_SAME_BITS(y, expected, bytes);
        }
        free(weight), free(x), free(y), free(expected), free(scratch), free(before);
        unmake(&l);
    }
    CHECK_EQUAL(ql_set_cpu_variant(NULL, NULL), QL_OK);
}

static void single(void) {
    const int shapes[][2] = {{1, 1},     {64, 3},    {24, 80},    {80, 24},  {100, 300},
                             {576, 192}, {33, 1000}, {1100, 290}, {2104, 70}};
    const int rows[] = {1, 2, 3, 4, 5, 8, 9, 17, 33, 130};
    for (int s = 0; s < 9; s++)
        for (int i = 0; i < N_WAYS; i++)
            for (int bias = 0; bias < 2; bias++) {
                layer l = make(shapes[s][0], shapes[s][1], ways[i], bias);
                for (int r = 0; r < 10; r += bias ? BIASED_STEP : 1)
                    check_layers(&l, 1, rows[r], (r + s) % 2);
                unmake(&l);
            }
}

static void together(void) { /* jobs of unequal sizes share a region */
    for (int i = 0; i < N_WAYS; i++) {
        layer layers[QL_MAX_JOBS] = {make(96, 576, ways[i], true), make(96, 192, ways[i], false),
                                     make(96, 10, ways[i], false), make(96, 700, ways[i], true)};
        for (int n = 1; n <= QL_MAX_JOBS; n++) {
            check_layers(layers, n, 1, true);
            check_layers(layers, n, 140, true);
            check_layers(layers, n, 140, false);
        }
        for (int j = 0; j < QL_MAX_JOBS; j++) unmake(&layers[j]);
    }
}

static void unlike(void) { /* each held another way, as files mix them */
    for (int i = 0; i < 8; i++) {
        layer layers[QL_MAX_JOBS] = {make(96, 200, QL_INT8, true), make(96, 70, QL_Q4, false),
                                     make(96, 60, i % 2 ? QL_BF16 : QL_INT8, false),
                                     make(96, 90, i % 2 ? QL_Q4 : QL_F32, true)};
        check_layers(layers, QL_MAX_JOBS, i < 4 ? 1 + i : 100 * i, i % 3 == 0);
        for (int j = 0; j < QL_MAX_JOBS; j++) unmake(&layers[j]);
    }
}

static void wide(void) { /* more columns than are unpacked at once */
    layer l = make(9000, 130, QL_BF16, true);
    CHECK(ql_linear_scratch(ql_kernels_get("avx2"), 1, &l.w, false, 500) <= 4 << 20);
    check_layers(&l, 1, 40, false);
    check_layers(&l, 1, 2, true);
    unmake(&l);
    l = make(700, 1100, QL_BF16, false); /* in wide panels on one thread, not on several */
    check_layers(&l, 1, 70, true);
    unmake(&l);
}

static void every_variant(void) {
    const char *names[QL_MAX_VARIANTS];
    int n = ql_cpu_variants(names);
    for (int way = 1; way < N_WAYS; way++) {
        layer l = make(100, 300, ways[way], true);
        for (int i = 0; i < n; i++) {
            CHECK_EQUAL(ql_set_cpu_variant(names[i], NULL), QL_OK);
            check_layers(&l, 1, 3, false);
            check_layers(&l, 1, 30, true);
        }
        CHECK_EQUAL(ql_set_cpu_variant(NULL, NULL), QL_OK);
        unmake(&l);
    }
}

/* y += down of SwiGLU, product by product. */
static void step_by_step(const ql_mlp *w, float *y, const float *x, int n_rows, char *scratch) {
    const ql_kernels *kernels = ql_kernels_get(NULL);
    size_t E = (size_t)w->gate->n_in, F = (size_t)w->gate->n_out, size = (size_t)n_rows * F;
    float *gate = malloc(size * sizeof *gate), *up = malloc(size * sizeof *up);
    ql_linear_job jobs[] = {{.y = gate, .x = x, .w = w->gate, .ldy = F, .ldx = E},
                            {.y = up, .x = x, .w = w->up, .ldy = F, .ldx = E}};
    ql_linear(kernels, 1, jobs, 2, n_rows, scratch);
    kernels->swiglu(gate, gate, up, size);
    ql_linear_job down = {.y = y, .x = gate, .w = w->down, .ldy = E, .ldx = F, .accumulate = true};
    ql_linear(kernels, 1, &down, 1, n_rows, scratch);
    free(gate), free(up);
}

/* The same bits as product by product, but for sgemm's (Haswell's depend on the panels), however
 * many threads there are. */
static void check_mlp(const ql_mlp *w, int n_rows) {
    const ql_kernels *kernels = ql_kernels_get(NULL);
    size_t E = (size_t)w->gate->n_in, size = (size_t)n_rows * E, bytes = 64;
    const ql_matrix *matrices[] = {w->gate, w->up, w->down};
    bool exact = true;
    for (int i = 0; i < 3; i++) {
        size_t one = ql_linear_scratch(kernels, 1, matrices[i], false, n_rows);
        bytes = one > bytes ? one : bytes;
        exact = exact && ql_way_of(kernels, matrices[i], n_rows) != QL_BY_SGEMM;
    }
    size_t whole = ql_mlp_scratch(kernels, MOST_THREADS, w, n_rows);
    bytes = ((whole > bytes ? whole : bytes) + 63) / 64 * 64;
    float *x = floats(size), *before = floats(size), *expected = malloc(size * sizeof *expected),
          *y = malloc(size * sizeof *y), *first = malloc(size * sizeof *first);
    char *scratch = aligned_alloc(64, bytes);
    if (w->norm.weight) memcpy(before, x, size * sizeof *before); /* as in the forward pass */
    memcpy(expected, before, size * sizeof *expected);
    float *given = w->norm.weight ? normed(x, w->norm, n_rows, E) : NULL;
    step_by_step(w, expected, given ? given : x, n_rows, scratch);
    free(given);
    const int threads[] = {1, 2, 3, 5};
    for (int c = 0; c < 4; c++) {
        memcpy(y, before, size * sizeof *y);
        memset(scratch, 0xff, whole);
        ql_mlp_add(kernels, threads[c], w, y, w->norm.weight ? y : x, n_rows, scratch);
        if (c == 0) memcpy(first, y, size * sizeof *first);
        CHECK_SAME_BITS(y, first, size * sizeof *y);
    }
    if (exact) CHECK_SAME_BITS(y, expected, size * sizeof *y);
    for (size_t i = 0; i < size; i++)
        CHECK_NEAR(y[i], expected[i], 1e-4 + 1e-4 * fabs(expected[i]));
    free(x), free(before), free(expected), free(y), free(first), free(scratch);
}

static void mlps(void) { /* held alike, and otherwise, as files mix them */
    const ql_dtype held[][3] = {{QL_F32, QL_F32, QL_F32},    {QL_BF16, QL_BF16, QL_BF16},
                                {QL_INT8, QL_INT8, QL_INT8}, {QL_Q4, QL_Q4, QL_INT8},
                                {QL_BF16, QL_F32, QL_Q4},    {QL_INT8, QL_BF16, QL_BF16},
                                {QL_BF16, QL_F32, QL_F32}};
    const int rows[] = {1, 3, 9, 70, 140}, shapes[][2] = {{96, 201}, {96, 700}, {700, 1100}};
    const char *names[QL_MAX_VARIANTS];
    int n = ql_cpu_variants(names);
    for (int i = 0; i < 7 * 3; i++) {
        const ql_dtype *as = held[i % 7];
        int E = shapes[i / 7][0], F = shapes[i / 7][1];
        layer gate = make(E, F, as[0], true), up = make(E, F, as[1], false),
              down = make(F, E, as[2], true);
        float *weight = floats((size_t)E);
        ql_mlp w = {&gate.w, &up.w, &down.w, {i % 2 ? weight : NULL, 1e-5f}};
        for (int v = 0; v < n; v++) {
            CHECK_EQUAL(ql_set_cpu_variant(names[v], NULL), QL_OK);
            for (int r = i / 7; r < 5; r += i / 7 + BIASED_STEP) check_mlp(&w, rows[r]);
        }
        CHECK_EQUAL(ql_set_cpu_variant(NULL, NULL), QL_OK);
        free(weight), unmake(&gate), unmake(&up), unmake(&down);
    }
}

static void rows_of_a_matrix(void) {
    for (int way = 0; way < N_WAYS; way++) {
        float plain[37 * 21], y[37];
        for (int i = 0; i < 37 * 21; i++) plain[i] = uniform();
        static _Alignas(64) char held[1 << 14];
        ql_hold(held, ways[way], plain, QL_F32, 21, 37, ql_kernels_get(NULL), 2);
        ql_matrix w = {held, NULL, 21, 37, ways[way]};
        const double steps[] = {0, 0x1p-9, 1 / 254.0,
                                2 / 30.0}; /* the most that rounding changes */
        for (int i = 0; i < 21; i++) {
            ql_matrix_row(ql_kernels_get(NULL), y, &w, i);
            for (int j = 0; j < 37; j++) CHECK_NEAR(y[j], plain[37 * i + j], 1.01 * steps[way]);
        }
    }
}

int main(int n_arguments, char **arguments) {
    ql_blas_single_threaded();
    CHECK_EQUAL(ql_threads_reserve(MOST_THREADS, NULL), QL_OK);
    CHECK_CONTAINS(ql_blas_name(), "OpenBLAS");
    if (getenv("OPENBLAS_CORETYPE") && !strcmp(getenv("OPENBLAS_CORETYPE"), "Haswell"))
        CHECK_CONTAINS(ql_blas_name(), "Haswell");
    RUN(single);
    RUN(together);
    RUN(unlike);
    RUN(wide);
    RUN(every_variant);
    RUN(norms);
    RUN(mlps);
    RUN(rows_of_a_matrix);
    printf("%s\n", ql_blas_name());
    int status = check_report("test_linear");
    if (status || n_arguments > 1 || getenv("OPENBLAS_CORETYPE") || !ql_kernels_get("avx2"))
        return status;
    fflush(stdout);
    setenv("OPENBLAS_CORETYPE", "Haswell", 1); /* read when the library is loaded */
    execv("/proc/self/exe", (char *[]){arguments[0], "again", NULL});
    return 1;
}
