/* limits.c - what this machine can do at most, as one JSON object on a line for each measurement:
 * peak rates of multiply-adds by number format, and the rate of reading memory.
 *
 *     limits SECONDS BYTES THREADS...
 *
 * SECONDS: how long each measurement takes; BYTES: how much memory a thread reads (more than the
 * caches hold); THREADS: numbers of threads, one after the other. Multiplications run on values in
 * registers, enough of them at once to hide the latency of an instruction. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { MOST_THREADS = 256, STEPS = 20000, PAGE = 2 << 20 };

typedef struct worker {
    double seconds; /* to work at least */
    unsigned char *memory;
    size_t bytes;
    double work, begin, end; /* operations or bytes done; when */
    void (*task)(struct worker *);
    pthread_barrier_t *start;
} worker;

/* Only so do all sums stay in registers. */
#define UNROLLED _Pragma("GCC unroll 32")

static volatile float factor = 0.9999f, summand = 0.0001f; /* unknown to the compiler */
static volatile float sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- multiply-adds: 2 operations each ---- */

/* N vectors of WIDTH bytes of float32, each multiplied and added to, STEPS times between looks at
 * the clock. */
#define MULTIPLY_ADD(NAME, TARGET, WIDTH, N)                                                       \
    TARGET static void NAME(worker *w) {                                                           \
        typedef float vector __attribute__((vector_size(WIDTH)));                                  \
        vector sums[N], a = factor - (vector){0}, b = summand - (vector){0};                       \
        UNROLLED for (int i = 0; i < N; i++) sums[i] = b * (float)i;                               \
        do {                                                                                       \
            for (int step = 0; step < STEPS; step++)                                               \
                UNROLLED for (int i = 0; i < N; i++) sums[i] = sums[i] * a + b;                    \
            w->work += 2.0 * STEPS * N * (WIDTH / 4);                                              \
        } while (now() - w->begin < w->seconds);                                                   \
        UNROLLED for (int i = 1; i < N; i++) sums[0] += sums[i];                                   \
        sink = sums[0][0];                                                                         \
    }

#if defined(__x86_64__)
#define AVX2   __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,prefer-vector-width=512")))
MULTIPLY_ADD(float32_256, AVX2, 32, 12)
MULTIPLY_ADD(float32_512, AVX512, 64, 24)

/* Products of one instruction with OPERATIONS operations. Named in assembler: a compiler that knows
 * what it does would combine sums of integers. */
#define PRODUCTS(NAME, TARGET, WIDTH, N, INSTRUCTION, OPERATIONS)                                  \
    TARGET static void NAME(worker *w) {                                                           \
        typedef int vector __attribute__((vector_size(WIDTH)));                                    \
        vector sums[N] = {{0}}, side = {0};                                                        \
        do {                                                                                       \
            for (int step = 0; step < STEPS; step++)                                               \
                UNROLLED for (int i = 0; i < N;                                                    \
                              i++) __asm__(INSTRUCTION " %1, %1, %0" : "+v"(sums[i]) : "v"(side)); \
            w->work += (double)OPERATIONS * STEPS * N;                                             \
        } while (now() - w->begin < w->seconds);                                                   \
        UNROLLED for (int i = 1; i < N; i++) sums[0] += sums[i];                                   \
        sink = (float)sums[0][0];                                                                  \
    }
/* Bytes without VNNI: pairs of products in 16 bits, added up there. */
AVX2 static void int8_256(worker *w) {
    __m256i sums[12], side = _mm256_setzero_si256();
    UNROLLED for (int i = 0; i < 12; i++) sums[i] = side;
    do {
        for (int step = 0; step < STEPS; step++) UNROLLED for (int i = 0; i < 12; i++) {
                __m256i pairs;
                __asm__("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0"
                        : "+x"(sums[i]), "=&x"(pairs)
                        : "x"(side));
            }
        w->work += 64.0 * STEPS * 12;
    } while (now() - w->begin < w->seconds);
    UNROLLED for (int i = 1; i < 12; i++) sums[0] = _mm256_add_epi16(sums[0], sums[i]);
    sink = (float)_mm256_extract_epi16(sums[0], 0);
}

PRODUCTS(bfloat16_512, AVX512, 64, 24, "vdpbf16ps", 64)
PRODUCTS(int8_512, AVX512, 64, 24, "vpdpbusd", 128)
PRODUCTS(int8_vnni_256, AVX2, 32, 12, "%{vex%} vpdpbusd", 64)

/* AMX: tiles of 16 rows of 32 bfloat16 numbers; six of sums, which hide the latency. */
static void bfloat16_tiles(worker *w) {
    struct {
        uint8_t palette, nothing[15];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory"); /* all tiles are 0 */
    do {
        for (int step = 0; step < STEPS; step++)
            __asm__ volatile("tdpbf16ps %tmm7, %tmm6, %tmm0\n\ttdpbf16ps %tmm7, %tmm6, %tmm1\n\t"
                             "tdpbf16ps %tmm7, %tmm6, %tmm2\n\ttdpbf16ps %tmm7, %tmm6, %tmm3\n\t"
                             "tdpbf16ps %tmm7, %tmm6, %tmm4\n\ttdpbf16ps %tmm7, %tmm6, %tmm5");
        w->work += 2.0 * 16 * 16 * 32 * 6 * STEPS;
    } while (now() - w->begin < w->seconds);
    __asm__ volatile("tilerelease");
}

/* Whether the CPU has them and the system lets this process use them, which it must ask for. */
static bool has_tiles(void) {
    unsigned a, b, c, d, wanted = 1u << 22 | 1u << 24;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & wanted) == wanted &&
           !syscall(SYS_arch_prctl, 0x1023, 18);
}
#else
MULTIPLY_ADD(float32_128, , 16, 24)
#endif

/* ---- reading memory ---- */

/* STREAMS places are read side by side, FETCH lines fetched ahead in each: a tenth more than one
 * place gives. The compiler cannot leave out a load whose sum is used. */
enum { STREAMS = 4, FETCH = 16 };
#define READ(NAME, TARGET, WIDTH)                                                                  \
    TARGET static void NAME(worker *w) {                                                           \
        typedef uint64_t vector __attribute__((vector_size(WIDTH)));                               \
        enum { LINE = 64 / WIDTH };                                                                \
        vector sums[STREAMS] = {0};                                                                \
        size_t lines = w->bytes / 64 / STREAMS;                                                    \
        do {                                                                                       \
            const vector *at = (const vector *)w->memory;                                          \
            for (size_t i = 0; i < lines * LINE; i += LINE) UNROLLED                               \
            for (int j = 0; j < STREAMS; j++) {                                                    \
                const vector *line = at + j * lines * LINE + i;                                    \
                __builtin_prefetch(line + FETCH * LINE);                                           \
                UNROLLED for (int k = 0; k < LINE; k++) sums[j] += line[k];                        \
            }                                                                                      \
            w->work += (double)(lines * 64 * STREAMS);                                             \
        } while (now() - w->begin < w->seconds);                                                   \
        UNROLLED for (int j = 1; j < STREAMS; j++) sums[0] += sums[j];                             \
        sink = (float)sums[0][0];                                                                  \
    }

#if defined(__x86_64__)
READ(read_memory, AVX2, 32)
#else
READ(read_memory, , 16)
#endif

/* ---- threads ---- */

static void *run(void *context) {
    worker *w = context;
    pthread_barrier_wait(w->start);
    w->begin = now();
    w->task(w);
    w->end = now();
    return NULL;
}

/* Work in a second of n threads side by side; negative if a thread could not be started. */
static double measure(void (*task)(worker *), double seconds, int n, unsigned char **memory,
                      size_t bytes) {
    static worker workers[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, (unsigned)n);
    for (int i = 0; i < n; i++) {
        workers[i] = (worker){seconds, memory[i], bytes, 0, 0, 0, task, &start};
        if (pthread_create(&threads[i], NULL, run, &workers[i])) return -1;
    }
    double rate = 0;
    for (int i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        rate += workers[i].work / (workers[i].end - workers[i].begin);
    }
    pthread_barrier_destroy(&start);
    return rate;
}

#if defined(__x86_64__)
static bool has_avx_vnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
#endif

typedef struct test {
    const char *name;
    void (*task)(worker *);
    bool runs; /* on this CPU */
} test;

static int tests_of(test *tests) {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    tests[n++] = (test){"float32_256", float32_256, avx2};
    tests[n++] = (test){"float32_512", float32_512, avx512};
    tests[n++] = (test){"int8_256", int8_256, avx2};
    tests[n++] = (test){"int8_vnni_256", int8_vnni_256, avx2 && has_avx_vnni()};
    tests[n++] = (test){"bfloat16", bfloat16_512, avx512 && __builtin_cpu_supports("avx512bf16")};
    tests[n++] = (test){"bfloat16_tiles", bfloat16_tiles, has_tiles()};
    tests[n++] = (test){"int8", int8_512, avx512 && __builtin_cpu_supports("avx512vnni")};
    tests[n++] = (test){"memory", read_memory, avx2};
#else
    tests[n++] = (test){"float32_128", float32_128, true};
    tests[n++] = (test){"memory", read_memory, true};
#endif
    return n;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: limits SECONDS BYTES THREADS...\n");
        return 2;
    }
    double seconds = atof(argv[1]);
    size_t bytes = (size_t)atoll(argv[2]) / 4096 * 4096;
    int most = 1;
    for (int i = 3; i < argc; i++)
        if (atoi(argv[i]) > most) most = atoi(argv[i]);
    if (!bytes || most > MOST_THREADS) {
        fprintf(stderr, "limits: at least 4096 bytes, at most %d threads\n", MOST_THREADS);
        return 2;
    }
    unsigned char *memory[MOST_THREADS];
    for (int i = 0; i < most; i++) {
        memory[i] = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
        if (!memory[i]) {
            fprintf(stderr, "limits: no memory for %d buffers of %zu bytes\n", most, bytes);
            return 1;
        }
#ifdef MADV_HUGEPAGE
        madvise(memory[i], bytes, MADV_HUGEPAGE);
#endif
        memset(memory[i], 1, bytes);
    }
    test tests[8];
    int n_tests = tests_of(tests);
    for (int i = 3; i < argc; i++) {
        for (int t = 0; t < n_tests; t++) {
            int n = atoi(argv[i]);
            double rate =
                tests[t].runs && n > 0 ? measure(tests[t].task, seconds, n, memory, bytes) : 0;
            if (rate < 0) {
                fprintf(stderr, "limits: the system refused %d threads\n", n);
                return 1;
            }
            if (rate > 0)
                printf("{\"name\": \"%s\", \"threads\": %d, \"rate\": %.6g}\n", tests[t].name, n,
                       rate);
        }
    }
    return 0;
}
