#include "error.h"

#include <stdarg.h>
#include <stdio.h>

ql_status ql_fail(ql_error *err, ql_status code, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        err->code = code;
    }
    return code;
}
