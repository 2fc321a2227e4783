#include "kernels.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "kernels/variants.h"
#include "ql.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static _Atomic(const ql_kernels *) chosen; /* NULL: the best one */

#if defined(__x86_64__) && !defined(QL_ONLY_AVX2)
/* Whether the CPU multiplies tiles of bfloat16 and of bytes, and the system lets this process do
 * so: it must ask once, as tiles make each thread's saved state 8 KB larger. */
static bool has_tiles(void) {
#if defined(__linux__)
    static _Atomic int known;                   /* 1: no, 2: yes */
    enum { AMX = 1 << 22 | 1 << 24 | 1 << 25 }; /* bfloat16, tiles, bytes */
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    int answer = atomic_load(&known);
    if (!answer) {
        bool there = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX) == AMX;
        answer = there && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) ? 2 : 1;
        atomic_store(&known, answer);
    }
    return answer == 2;
#else
    return false;
#endif
}

/* The variants with AVX-512 that run here, best first; returns how many. Intel's products of pairs
 * of bfloat16 run at half the rate of its float32, AMD's at twice. */
static int runnable_avx512(const ql_kernels *tables[QL_MAX_VARIANTS]) {
    int n = 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 0;
    bool vnni = __builtin_cpu_supports("avx512vnni"), slow = __builtin_cpu_is("intel");
    bool pairs = vnni && __builtin_cpu_supports("avx512bf16");
    if (pairs && has_tiles()) tables[n++] = &ql_kernels_amx;
    if (pairs && !slow) tables[n++] = &ql_kernels_avx512bf16;
    if (vnni) tables[n++] = &ql_kernels_avx512vnni;
    if (pairs && slow) tables[n++] = &ql_kernels_avx512bf16;
    tables[n++] = &ql_kernels_avx512;
    return n;
}

/* Products of bytes in vectors of 256 bits; a question older than compilers' names for it. */
static bool has_avx_vnni(void) {
    enum { AVX_VNNI = 1 << 4 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & AVX_VNNI;
}
#endif

#if defined(__x86_64__)
/* Asked of the CPU itself, as has_avx_vnni: clang 14 has no name for it. */
static bool has_half_floats(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

/* The variants that run on this CPU and operating system, best first; returns how many. */
static int runnable(const ql_kernels *tables[QL_MAX_VARIANTS]) {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_half_floats();
#ifndef QL_ONLY_AVX2
    if (avx2) n = runnable_avx512(tables);
    if (avx2 && has_avx_vnni()) tables[n++] = &ql_kernels_avxvnni;
#endif
    if (avx2) tables[n++] = &ql_kernels_avx2;
#endif
    tables[n++] = &ql_kernels_portable;
    tables[n++] = &ql_kernels_naive;
    return n;
}

const ql_kernels *ql_kernels_get(const char *name) {
    const ql_kernels *tables[QL_MAX_VARIANTS];
    int n = runnable(tables);
    if (!name) {
        const ql_kernels *table = atomic_load(&chosen);
        return table ? table : tables[0];
    }
    for (int i = 0; i < n; i++)
        if (!strcmp(tables[i]->name, name)) return tables[i];
    return NULL;
}

int ql_cpu_variants(const char *names[QL_MAX_VARIANTS]) {
    const ql_kernels *tables[QL_MAX_VARIANTS];
    int n = runnable(tables);
    for (int i = 0; i < n; i++) names[i] = tables[i]->name;
    return n;
}

const char *ql_cpu_variant(void) { return ql_kernels_get(NULL)->name; }

ql_status ql_set_cpu_variant(const char *name, ql_error *err) {
    const ql_kernels *table = name ? ql_kernels_get(name) : NULL;
    if (name && !table) {
        const char *names[QL_MAX_VARIANTS];
        char list[128] = "";
        int n = ql_cpu_variants(names);
        for (int i = 0, at = 0; i < n; i++)
            at += snprintf(list + at, sizeof list - (size_t)at, "%s%s", i ? ", " : "", names[i]);
        return ql_fail(err, QL_INVALID_VALUE, "this CPU has no variant \"%.40s\"; choose one of %s",
                       name, list);
    }
    atomic_store(&chosen, table);
    return QL_OK;
}

bool ql_cpu_computes_bf16(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP2) >> 14 & 1; /* HWCAP2_BF16 */
#else
    return false;
#endif
}
