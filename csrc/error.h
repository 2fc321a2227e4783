/* error.h - a status and a sentence for the caller. */
#ifndef QL_ERROR_H
#define QL_ERROR_H

#include "ql.h"

/* Fills *err (may be NULL) from a printf format, returns code. */
ql_status ql_fail(ql_error *err, ql_status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
