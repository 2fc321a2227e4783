/* quant.c - stored numbers to float32: the float formats and the GGUF block formats.
 *
 * Block layouts are those of GGUF as ggml defines them. Every product of scales and a quantised
 * value below is exact in float32: a scale has 11 significant bits (float16), a small scale at most
 * 7, a value at most 7, and never more than 24 together. So only the last addition rounds, and a
 * compiler that fuses it with a product changes no bit.
 */
#include "quant.h"

#include <string.h>

enum { SUPER = 256 }; /* values in a block of a K format */

typedef struct format {
    const char *name, *short_name; /* short_name: also accepted, or NULL */
    size_t values, bytes;          /* of one block */
} format;

static const format formats[QL_N_DTYPES] = {
    [QL_F32] = {"float32", "f32", 1, 4},    [QL_F16] = {"float16", "f16", 1, 2},
    [QL_BF16] = {"bfloat16", "bf16", 1, 2}, [QL_Q4_0] = {"q4_0", NULL, 32, 18},
    [QL_Q4_1] = {"q4_1", NULL, 32, 20},     [QL_Q5_0] = {"q5_0", NULL, 32, 22},
    [QL_Q5_1] = {"q5_1", NULL, 32, 24},     [QL_Q8_0] = {"q8_0", NULL, 32, 34},
    [QL_Q2_K] = {"q2_k", NULL, SUPER, 84},  [QL_Q3_K] = {"q3_k", NULL, SUPER, 110},
    [QL_Q4_K] = {"q4_k", NULL, SUPER, 144}, [QL_Q5_K] = {"q5_k", NULL, SUPER, 176},
    [QL_Q6_K] = {"q6_k", NULL, SUPER, 210},
};

/* Ways to hold weights, beside two of the formats above; indexes from QL_N_DTYPES on. */
static const char *const held[] = {"int8", "q4", "stored"};

static bool known(ql_dtype dtype) { return (unsigned)dtype < QL_N_DTYPES; }

const char *ql_dtype_name(ql_dtype dtype) {
    if ((unsigned)dtype >= QL_INT8 && (unsigned)dtype <= QL_STORED) return held[dtype - QL_INT8];
    return known(dtype) ? formats[dtype].name : "unknown";
}

bool ql_dtype_parse(const char *name, ql_dtype *dtype) {
    for (int i = 0; name && i < QL_N_DTYPES; i++) {
        const char *other = formats[i].short_name;
        if (strcmp(name, formats[i].name) == 0 || (other && strcmp(name, other) == 0)) {
            *dtype = (ql_dtype)i;
            return true;
        }
    }
    return false;
}

bool ql_held_parse(const char *name, ql_dtype *dtype) {
    ql_dtype found;
    if (ql_dtype_parse(name, &found) && (found == QL_F32 || found == QL_BF16)) {
        *dtype = found;
        return true;
    }
    for (int i = QL_INT8; name && i <= QL_STORED; i++)
        if (strcmp(name, ql_dtype_name((ql_dtype)i)) == 0) {
            *dtype = (ql_dtype)i;
            return true;
        }
    return false;
}

size_t ql_dtype_block(ql_dtype dtype) { return known(dtype) ? formats[dtype].values : 0; }

size_t ql_dtype_block_bytes(ql_dtype dtype) { return known(dtype) ? formats[dtype].bytes : 0; }

static inline uint16_t load_u16(const uint8_t *x) {
    uint16_t bits;
    memcpy(&bits, x, sizeof bits);
    return bits;
}

static inline uint32_t load_u32(const uint8_t *x) {
    uint32_t bits;
    memcpy(&bits, x, sizeof bits);
    return bits;
}

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Exact, without branches (so that loops over it vectorise) and without subnormal float32 on the
 * way (so that a thread which flushes those to zero gets the same). */
static inline float from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t rest = (uint32_t)(h & 0x7fffu) << 13; /* exponent and fraction, in place */
    const uint32_t exponent = rest & 0x0f800000u;
    /* What it is when the exponent is 0: fraction * 2^-24. */
    const float tiny = from_bits(rest | 0x38800000u) - 0x1p-14f;
    uint32_t tiny_bits;
    memcpy(&tiny_bits, &tiny, sizeof tiny_bits);
    /* What it is otherwise: infinite or NaN, or with its exponent's bias moved from 15 to 127. */
    const uint32_t all = -(uint32_t)(exponent == 0x0f800000u); /* all bits, or none */
    const uint32_t none = -(uint32_t)(exponent == 0);
    const uint32_t normal = rest + 0x38000000u + (all & 0x38000000u);
    return from_bits(sign | (none & tiny_bits) | (~none & normal));
}

/* A block's scale. A call of its own: inlined, it keeps the compiler from vectorising a block well
 * (Q6_K then takes three times as long). */
static __attribute__((noinline)) float load_f16(const uint8_t *x) { return from_f16(load_u16(x)); }

static void decode_f16(float *restrict y, const uint8_t *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = from_f16(load_u16(x + 2 * i));
}

static void decode_bf16(float *restrict y, const uint8_t *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = from_bits((uint32_t)load_u16(x + 2 * i) << 16);
}

/* ---- 32 values: scale d, perhaps minimum m; a byte holds values i (low bits) and i + 16 */

/* Block: d, 16 bytes */
static void decode_q4_0(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 18, y += 32) {
        const float d = load_f16(x);
        for (int i = 0; i < 16; i++) y[i] = d * (float)((x[2 + i] & 15) - 8);
        for (int i = 0; i < 16; i++) y[16 + i] = d * (float)((x[2 + i] >> 4) - 8);
    }
}

/* Block: d, m, 16 bytes */
static void decode_q4_1(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 20, y += 32) {
        const float d = load_f16(x), m = load_f16(x + 2);
        for (int i = 0; i < 16; i++) y[i] = d * (float)(x[4 + i] & 15) + m;
        for (int i = 0; i < 16; i++) y[16 + i] = d * (float)(x[4 + i] >> 4) + m;
    }
}

/* The 32 values of 5 bits: low four bits in bytes [16], fifth bit of value i is bit i of high. */
static inline void unpack_5_bits(int *restrict q, const uint8_t *restrict low, uint32_t high) {
    for (int i = 0; i < 16; i++) q[i] = (low[i] & 15) | (int)((high >> i & 1) << 4);
    for (int i = 0; i < 16; i++) q[16 + i] = (low[i] >> 4) | (int)((high >> (i + 16) & 1) << 4);
}

/* Block: d, 4 bytes of fifth bits, 16 bytes */
static void decode_q5_0(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 22, y += 32) {
        int q[32];
        const float d = load_f16(x);
        unpack_5_bits(q, x + 6, load_u32(x + 2));
        for (int i = 0; i < 32; i++) y[i] = d * (float)(q[i] - 16);
    }
}

/* Block: d, m, 4 bytes of fifth bits, 16 bytes */
static void decode_q5_1(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 24, y += 32) {
        int q[32];
        const float d = load_f16(x), m = load_f16(x + 2);
        unpack_5_bits(q, x + 8, load_u32(x + 4));
        for (int i = 0; i < 32; i++) y[i] = d * (float)q[i] + m;
    }
}

/* Block: d, 32 signed bytes */
static void decode_q8_0(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 34, y += 32) {
        const float d = load_f16(x);
        for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)x[2 + i];
    }
}

/* ---- 256 values in groups of 16 or 32, each group with its own small scale */

/* Block: 16 bytes of scale and minimum, 4 bits each; 64 bytes; d, dmin. */
static void decode_q2_k(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 84) {
        const float d = load_f16(x + 80), dmin = load_f16(x + 82);
        for (int group = 0; group < 16; group++, y += 16) {
            const uint8_t *q = x + 16 + 32 * (group / 8) + 16 * (group % 2);
            const int shift = 2 * (group / 2 % 4);
            const float scale = d * (float)(x[group] & 15), minimum = dmin * (float)(x[group] >> 4);
            for (int i = 0; i < 16; i++) y[i] = scale * (float)(q[i] >> shift & 3) - minimum;
        }
    }
}

/* The 16 scales of Q3_K from 12 bytes: low four bits in bytes 0-7, two high bits in bytes 8-11. */
static inline void unpack_q3_scales(int scales[16], const uint8_t packed[12]) {
    for (int i = 0; i < 16; i++) {
        const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
        const int high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        scales[i] = (low | high << 4) - 32;
    }
}

/* Block: 32 bytes of third bits; 64 bytes; 12 of scales; d */
static void decode_q3_k(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 110) {
        int scales[16];
        const float d = load_f16(x + 108);
        unpack_q3_scales(scales, x + 96);
        for (int group = 0; group < 16; group++, y += 16) {
            const uint8_t *q = x + 32 + 32 * (group / 8) + 16 * (group % 2);
            const uint8_t *high = x + 16 * (group % 2);
            const int shift = 2 * (group / 2 % 4), bit = group / 2;
            const float scale = d * (float)scales[group];
            for (int i = 0; i < 16; i++) {
                const int third = high[i] >> bit & 1; /* clear: four less */
                y[i] = scale * (float)((q[i] >> shift & 3) + 4 * third - 4);
            }
        }
    }
}

/* Scale and minimum of group 0 ... 7 of Q4_K and Q5_K, 6 bits each, from 12 bytes. */
static inline void unpack_scale_min(int *scale, int *minimum, const uint8_t packed[12], int group) {
    if (group < 4) {
        *scale = packed[group] & 63;
        *minimum = packed[group + 4] & 63;
    } else {
        *scale = (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
        *minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    }
}

/* Block: d, dmin, 12 bytes of scales, 128 bytes */
static void decode_q4_k(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 144) {
        const float d = load_f16(x), dmin = load_f16(x + 2);
        for (int group = 0; group < 8; group++, y += 32) {
            const uint8_t *q = x + 16 + 32 * (group / 2);
            const int shift = 4 * (group % 2);
            int s, m;
            unpack_scale_min(&s, &m, x + 4, group);
            const float scale = d * (float)s, minimum = dmin * (float)m;
            for (int i = 0; i < 32; i++) y[i] = scale * (float)(q[i] >> shift & 15) - minimum;
        }
    }
}

/* Block: d, dmin, 12 bytes of scales, 32 of fifth bits, 128 bytes */
static void decode_q5_k(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 176) {
        const float d = load_f16(x), dmin = load_f16(x + 2);
        for (int group = 0; group < 8; group++, y += 32) {
            const uint8_t *q = x + 48 + 32 * (group / 2), *high = x + 16;
            const int shift = 4 * (group % 2);
            int s, m;
            unpack_scale_min(&s, &m, x + 4, group);
            const float scale = d * (float)s, minimum = dmin * (float)m;
            for (int i = 0; i < 32; i++) {
                const int value = (q[i] >> shift & 15) | (high[i] >> group & 1) << 4;
                y[i] = scale * (float)value - minimum;
            }
        }
    }
}

/* Block: 128 bytes of low four bits, 64 of high two; 16 scales; d */
static void decode_q6_k(float *restrict y, const uint8_t *restrict x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, x += 210) {
        const float d = load_f16(x + 208);
        for (int group = 0; group < 16; group++, y += 16) {
            const int half = group / 8, part = group / 2 % 4, side = 16 * (group % 2);
            const uint8_t *low = x + 64 * half + 32 * (part % 2) + side;
            const uint8_t *high = x + 128 + 32 * half + side;
            const int low_shift = 4 * (part / 2), high_shift = 2 * part;
            const float scale = d * (float)(int8_t)x[192 + group];
            for (int i = 0; i < 16; i++) {
                const int value = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
                y[i] = scale * (float)(value - 32);
            }
        }
    }
}

void ql_decode(float *y, const void *x, ql_dtype dtype, size_t n) {
    const uint8_t *bytes = x;
    const size_t n_blocks = known(dtype) ? n / formats[dtype].values : 0;
    if (n_blocks == 0) return;
    switch (dtype) {
    case QL_F32: memcpy(y, x, n * sizeof *y); break;
    case QL_F16: decode_f16(y, bytes, n); break;
    case QL_BF16: decode_bf16(y, bytes, n); break;
    case QL_Q4_0: decode_q4_0(y, bytes, n_blocks); break;
    case QL_Q4_1: decode_q4_1(y, bytes, n_blocks); break;
    case QL_Q5_0: decode_q5_0(y, bytes, n_blocks); break;
    case QL_Q5_1: decode_q5_1(y, bytes, n_blocks); break;
    case QL_Q8_0: decode_q8_0(y, bytes, n_blocks); break;
    case QL_Q2_K: decode_q2_k(y, bytes, n_blocks); break;
    case QL_Q3_K: decode_q3_k(y, bytes, n_blocks); break;
    case QL_Q4_K: decode_q4_k(y, bytes, n_blocks); break;
    case QL_Q5_K: decode_q5_k(y, bytes, n_blocks); break;
    case QL_Q6_K: decode_q6_k(y, bytes, n_blocks); break;
    default: break; /* not a format of files */
    }
}
