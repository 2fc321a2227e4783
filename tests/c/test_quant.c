/* Names, sizes and values of the stored formats; the bytes are in exact-size heap blocks, so that a
 * sanitizer sees every access beyond them. */
#include "check.h"
#include "quant.h"

#include <stdlib.h>

static void names_and_sizes(void) {
    ql_dtype dtype = QL_N_DTYPES;
    for (int i = 0; i < QL_N_DTYPES; i++) {
        const char *name = ql_dtype_name((ql_dtype)i);
        CHECK(ql_dtype_parse(name, &dtype));
        CHECK_EQUAL(dtype, i);
        CHECK(ql_dtype_block((ql_dtype)i) > 0);
        CHECK(ql_dtype_block_bytes((ql_dtype)i) > 0);
    }
    CHECK(ql_dtype_parse("f32", &dtype) && dtype == QL_F32);
    CHECK(ql_dtype_parse("f16", &dtype) && dtype == QL_F16);
    CHECK(ql_dtype_parse("bf16", &dtype) && dtype == QL_BF16);
    dtype = QL_Q4_1;
    CHECK(!ql_dtype_parse("q4_2", &dtype));
    CHECK(!ql_dtype_parse("", &dtype));
    CHECK(!ql_dtype_parse(NULL, &dtype));
    CHECK_EQUAL(dtype, QL_Q4_1);
    CHECK_CONTAINS(ql_dtype_name((ql_dtype)(QL_STORED + 1)), "unknown");
    CHECK_CONTAINS(ql_dtype_name((ql_dtype)-1), "unknown");
    CHECK_EQUAL(ql_dtype_block(QL_N_DTYPES), 0);
    CHECK_EQUAL(ql_dtype_block_bytes((ql_dtype)-1), 0);
}

static void ways_to_hold(void) {
    const ql_dtype ways[] = {QL_F32, QL_BF16, QL_INT8, QL_Q4, QL_STORED};
    ql_dtype dtype = QL_N_DTYPES;
    for (int i = 0; i < 5; i++) {
        CHECK(ql_held_parse(ql_dtype_name(ways[i]), &dtype));
        CHECK_EQUAL(dtype, ways[i]);
        CHECK_EQUAL(ql_dtype_parse(ql_dtype_name(ways[i]), &dtype), i < 2);
    }
    for (int i = QL_Q4_0; i < QL_N_DTYPES; i++)
        CHECK(!ql_held_parse(ql_dtype_name((ql_dtype)i), &dtype));
    CHECK(!ql_held_parse("f16", &dtype));
    CHECK(!ql_held_parse("unknown", &dtype));
    CHECK(!ql_held_parse(NULL, &dtype));
}

/* Decodes `blocks` blocks that begin `offset` bytes into an allocation and end with it. The result
 * is the caller's to free; NULL when there is no memory. */
static float *decode(ql_dtype dtype, size_t blocks, size_t offset, unsigned seed) {
    const size_t n = blocks * ql_dtype_block(dtype);
    const size_t n_bytes = blocks * ql_dtype_block_bytes(dtype);
    uint8_t *bytes = malloc(offset + n_bytes);
    float *y = malloc(n * sizeof *y);
    if (bytes && y) {
        for (size_t i = 0; i < n_bytes; i++) {
            seed = seed * 1664525u + 1013904223u;
            bytes[offset + i] = (uint8_t)(seed >> 24);
        }
        ql_decode(y, bytes + offset, dtype, n);
    }
    free(bytes);
    return y;
}

static void any_alignment(void) {
    for (int i = 0; i < QL_N_DTYPES; i++) {
        const ql_dtype dtype = (ql_dtype)i;
        const size_t n = 7 * ql_dtype_block(dtype);
        float *aligned = decode(dtype, 7, 0, 42);
        for (size_t offset = 1; offset < 5; offset++) {
            float *shifted = decode(dtype, 7, offset, 42);
            CHECK(aligned && shifted && memcmp(aligned, shifted, n * sizeof *shifted) == 0);
            free(shifted);
        }
        free(aligned);
    }
}

static void nothing_to_decode(void) {
    float y = 5;
    for (int i = 0; i <= QL_N_DTYPES; i++) ql_decode(&y, "", (ql_dtype)i, 0);
    CHECK(y == 5);
}

static void half_precision(void) {
    const uint16_t x[] = {0x0000, 0x8000, 0x3c00, 0xc000, 0x7bff, 0x0001, 0x83ff, 0x7c00, 0xfc00};
    const float expected[] = {0, -0.0f, 1, -2, 65504, 0x1p-24f, -0x3ffp-24f, INFINITY, -INFINITY};
    float y[9];
    ql_decode(y, x, QL_F16, 9);
    CHECK_SAME_BITS(y, expected, sizeof y);
    const uint16_t nan = 0x7c01;
    ql_decode(y, &nan, QL_F16, 1);
    CHECK(isnan(y[0]));
    const uint16_t brain[] = {0x3f80, 0xc000, 0x7f80, 0x8000};
    const float values[] = {1, -2, INFINITY, -0.0f};
    ql_decode(y, brain, QL_BF16, 4);
    CHECK_SAME_BITS(y, values, sizeof values);
}

/* A block of Q4_1 by hand: scale 0.5, minimum -1; byte i holds value i (low) and 15 - i (high). */
static void four_bits_by_hand(void) {
    uint8_t block[20] = {0x00, 0x38, 0x00, 0xbc};
    for (int i = 0; i < 16; i++) block[4 + i] = (uint8_t)(i | (15 - i) << 4);
    float y[32];
    ql_decode(y, block, QL_Q4_1, 32);
    for (int i = 0; i < 16; i++) {
        CHECK(y[i] == 0.5f * (float)i - 1);
        CHECK(y[16 + i] == 0.5f * (float)(15 - i) - 1);
    }
}

int main(void) {
    RUN(names_and_sizes);
    RUN(ways_to_hold);
    RUN(any_alignment);
    RUN(nothing_to_decode);
    RUN(half_precision);
    RUN(four_bits_by_hand);
    return check_report("test_quant");
}
