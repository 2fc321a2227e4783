/* twins.h - a CPU variant beside the naive twin, and numbers for both, for the C test programs. */
#ifndef QL_TWINS_H
#define QL_TWINS_H

#include <stdlib.h>

#include "check.h"
#include "kernels.h"
#include "ql.h"

static const ql_kernels *naive, *tested;
static uint64_t seed = 1;

/* Uniform in [-1, 1). */
static inline float uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

static inline float *floats(size_t n) {
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = uniform();
    return x;
}

static inline uint16_t *halves(const float *x, size_t n) {
    uint16_t *y = malloc((n + 1) * sizeof *y);
    naive->pack_bf16(y, x, n);
    return y;
}

static inline double worst(const float *got, const float *expected, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double difference = fabs((double)got[i] - (double)expected[i]);
        if (!(difference <= most)) most = difference;
    }
    return most;
}

/* Calls `all` with each variant that runs here as `tested`. */
static inline void each_variant(void (*all)(void)) {
    naive = ql_kernels_get("naive");
    const char *list[QL_MAX_VARIANTS];
    int n = ql_cpu_variants(list);
    for (int i = 0; i < n; i++) {
        tested = ql_kernels_get(list[i]);
        int failures = check_failures;
        all();
        printf("%s: %s\n", list[i], check_failures == failures ? "as the twin" : "differs");
    }
}

#endif
