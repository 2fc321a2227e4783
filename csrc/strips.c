#include "strips.h"

#include <math.h>
#include <string.h>

#include "quant.h"

enum { INT8_ZERO = 128, Q4_LEVELS = 15, Q4_BYTES = QL_STRIP * 20, FACTORS = 4 * QL_STRIP };

static size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

size_t ql_strip_bytes(ql_dtype dtype, size_t n_in) {
    if (dtype == QL_INT8) return QL_STRIP * (up(n_in, QL_GROUP) + sizeof(float));
    return up(n_in, QL_BLOCK) / QL_BLOCK * Q4_BYTES;
}

/* The largest absolute value; not finite if one of x is not. */
static float largest(const float *x, size_t n) {
    uint32_t most = 0; /* as bits, infinities and NaNs are above all numbers */
    for (size_t j = 0; j < n; j++) {
        uint32_t bits;
        memcpy(&bits, &x[j], sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float value;
    memcpy(&value, &most, sizeof value);
    return value;
}

/* x [n <= QL_GROUP] times factor, rounded, plus zero: as bytes. */
static void round_bytes(uint8_t *y, const float *x, float factor, int zero, size_t n) {
    for (size_t j = 0; j < n; j++) {
        float shifted =
            x[j] * factor + 12582912.0f; /* 1.5 * 2^23: the integer is in the low bits */
        int32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        y[j] = (uint8_t)(bits + zero);
    }
}

void ql_strip_int8(uint8_t *strip, const float *rows, int n, size_t n_in) {
    size_t columns = up(n_in, QL_GROUP);
    for (int i = 0; i < QL_STRIP; i++) {
        const float *row = rows + (size_t)i * n_in;
        float most = i < n ? largest(row, n_in) : 0, scale = isfinite(most) ? most / 127 : NAN;
        float factor = most >= 0x1p-100f && isfinite(most) ? 127 / most : 0;
        for (size_t first = 0; first < columns; first += QL_GROUP) {
            uint8_t bytes[QL_GROUP];
            size_t left = first < n_in ? n_in - first : 0;
            memset(bytes, INT8_ZERO, sizeof bytes);
            if (factor > 0)
                round_bytes(bytes, row + first, factor, INT8_ZERO,
                            left < QL_GROUP ? left : QL_GROUP);
            for (size_t j = 0; j < QL_GROUP; j += 4)
                memcpy(strip + (first + j) * QL_STRIP + 4 * i, bytes + j, 4);
        }
        memcpy(strip + columns * QL_STRIP + (size_t)i * sizeof scale, &scale, sizeof scale);
    }
}

/* To the nearest, ties to even; infinite above 65504. */
static uint16_t to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float size = fabsf(value);
    if (!(size < 65520)) return sign | (isnan(value) ? 0x7e00 : 0x7c00);
    if (size < 0x1p-14f) /* subnormal: a whole number of 2^-24 */
        return sign | (uint16_t)lrintf(size * 0x1p24f);
    bits &= 0x7fffffff;
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((bits >> 13) - (112 << 10));
}

static float from_f16(uint16_t half) {
    float value;
    ql_decode(&value, &half, QL_F16, 1);
    return value;
}

typedef struct block {
    uint16_t d, m; /* float16 */
    uint8_t q[QL_BLOCK];
} block;

static void put_block(uint8_t *at, int i, const block *from) {
    memcpy(at + 2 * i, &from->d, 2);
    memcpy(at + 2 * (QL_STRIP + i), &from->m, 2);
    for (int j = 0; j < QL_BLOCK / 2; j++)
        at[FACTORS + j / 4 * 4 * QL_STRIP + 4 * i + j % 4] =
            (uint8_t)(from->q[j] | from->q[j + QL_BLOCK / 2] << 4);
}

/* x [n <= QL_BLOCK] */
static block make_block(const float *x, size_t n) {
    block made = {0};
    float low = INFINITY, high = -INFINITY, factor;
    for (size_t j = 0; j < n; j++) {
        low = x[j] < low ? x[j] : low;
        high = x[j] > high ? x[j] : high;
    }
    made.m = to_f16(low);
    made.d = to_f16((high - low) / Q4_LEVELS);
    float d = from_f16(made.d), m = from_f16(made.m);
    if (!isfinite(largest(x, n)) || !isfinite(d) || !isfinite(m)) {
        made.d = made.m = 0x7e00;
        return made;
    }
    factor = d > 0 ? 1 / d : 0;
    for (size_t j = 0; j < n; j++) {
        float q = (x[j] - m) * factor + 0.5f;
        made.q[j] = (uint8_t)(q < 0 ? 0 : q > Q4_LEVELS ? Q4_LEVELS : q);
    }
    return made;
}

void ql_strip_q4(uint8_t *strip, const float *rows, int n, size_t n_in) {
    memset(strip, 0, ql_strip_bytes(QL_Q4, n_in));
    for (int i = 0; i < n; i++)
        for (size_t j = 0; j < n_in; j += QL_BLOCK) {
            size_t left = n_in - j;
            block made = make_block(rows + (size_t)i * n_in + j, left < QL_BLOCK ? left : QL_BLOCK);
            put_block(strip + j / QL_BLOCK * Q4_BYTES, i, &made);
        }
}

void ql_strip_q4_blocks(uint8_t *strip, const uint8_t *blocks, ql_dtype dtype, int n, size_t n_in) {
    size_t n_blocks = n_in / QL_BLOCK, bytes = ql_dtype_block_bytes(dtype);
    memset(strip, 0, ql_strip_bytes(QL_Q4, n_in));
    for (size_t b = 0; b < n_blocks; b++, strip += Q4_BYTES)
        for (int i = 0; i < n; i++) {
            const uint8_t *from = blocks + ((size_t)i * n_blocks + b) * bytes;
            uint16_t d, m;
            memcpy(&d, from, sizeof d);
            if (dtype == QL_Q4_0)
                m = to_f16(-8 * from_f16(d));
            else
                memcpy(&m, from + 2, sizeof m);
            memcpy(strip + 2 * i, &d, sizeof d);
            memcpy(strip + 2 * (QL_STRIP + i), &m, sizeof m);
            for (size_t p = 0; p < 4; p++)
                memcpy(strip + FACTORS + p * 4 * QL_STRIP + 4 * i, from + bytes - 16 + 4 * p, 4);
        }
}

void ql_strip_row(float *y, const uint8_t *strip, ql_dtype dtype, int i, size_t n_in) {
    if (dtype == QL_INT8) {
        float scale;
        memcpy(&scale, strip + QL_STRIP * up(n_in, QL_GROUP) + (size_t)i * sizeof scale,
               sizeof scale);
        for (size_t j = 0; j < n_in; j++)
            y[j] = scale * (float)(strip[j / 4 * 4 * QL_STRIP + 4 * i + j % 4] - INT8_ZERO);
        return;
    }
    for (size_t first = 0; first < n_in; first += QL_BLOCK, strip += Q4_BYTES) {
        uint16_t d, m;
        memcpy(&d, strip + 2 * i, sizeof d);
        memcpy(&m, strip + 2 * (QL_STRIP + i), sizeof m);
        float factor = from_f16(d), minimum = from_f16(m);
        for (size_t j = 0; j < QL_BLOCK && first + j < n_in; j++) {
            int both = strip[FACTORS + j % 16 / 4 * 4 * QL_STRIP + 4 * i + j % 4];
            y[first + j] = factor * (float)(j < 16 ? both & 15 : both >> 4) + minimum;
        }
    }
}
