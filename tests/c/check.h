/* check.h - assertions for the C test programs. A program is a list of functions:
 *
 *     static void adds(void) { CHECK_EQUAL(1 + 1, 2); }
 *     int main(void) {
 *         RUN(adds);
 *         return check_report("test_sums");
 *     }
 *
 * A failed check prints where and what, and the program goes on; its exit status is 1 when any
 * failed. */
#ifndef QL_CHECK_H
#define QL_CHECK_H

#include <math.h>
#include <stdio.h>
#include <string.h>

static _Atomic int check_count, check_failures; /* checked from several threads too */

/* Counts a check; on failure prints the place and returns false, so that the caller may print more.
 */
static inline int check_that(int holds, const char *file, int line, const char *text) {
    check_count++;
    if (!holds) {
        check_failures++;
        printf("%s:%d: failed: %s\n", file, line, text);
    }
    return holds;
}

#define CHECK(condition) check_that(!!(condition), __FILE__, __LINE__, #condition)

/* Integers. */
#define CHECK_EQUAL(got, expected)                                                                 \
    do {                                                                                           \
        const long long got_ = (long long)(got), expected_ = (long long)(expected);                \
        if (!check_that(got_ == expected_, __FILE__, __LINE__, #got " == " #expected))             \
            printf("    got %lld, expected %lld\n", got_, expected_);                              \
    } while (0)

/* Numbers, |got - expected| <= tolerance. A NaN is near nothing. */
#define CHECK_NEAR(got, expected, tolerance)                                                       \
    do {                                                                                           \
        const double got_ = (double)(got), expected_ = (double)(expected);                         \
        if (!check_that(fabs(got_ - expected_) <= (double)(tolerance), __FILE__, __LINE__,         \
                        #got " near " #expected))                                                  \
            printf("    got %.9g, expected %.9g within %g\n", got_, expected_,                     \
                   (double)(tolerance));                                                           \
    } while (0)

/* Texts: got contains part. */
#define CHECK_CONTAINS(got, part)                                                                  \
    do {                                                                                           \
        const char *got_ = (got), *part_ = (part);                                                 \
        if (!check_that(got_ && strstr(got_, part_), __FILE__, __LINE__, #got " has " #part))      \
            printf("    got \"%s\", expected \"%s\" in it\n", got_ ? got_ : "(null)", part_);      \
    } while (0)

/* The same bits. */
#define CHECK_SAME_BITS(got, expected, bytes)                                                      \
    check_that(memcmp((got), (expected), (bytes)) == 0, __FILE__, __LINE__,                        \
               #got " has the bits of " #expected)

/* Runs one test function and names it when something in it failed. */
#define RUN(function)                                                                              \
    do {                                                                                           \
        const int failures_ = check_failures;                                                      \
        function();                                                                                \
        if (check_failures != failures_) printf("in %s\n", #function);                             \
    } while (0)

/* Returns the program's exit status. */
static inline int check_report(const char *program) {
    printf("%s: %d checks, %d failed\n", program, check_count, check_failures);
    return check_failures != 0 || check_count == 0;
}

#endif
