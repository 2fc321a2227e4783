/* rope.h - rotary position embedding (rotate-half): angles in double, tables in float. Scaling as
 * HuggingFace names it. */
#ifndef QL_ROPE_H
#define QL_ROPE_H

#include "ql.h"

/* inv_freq [D/2]: radians per token of each pair of dimensions, by config's rope_type. */
void ql_rope_frequencies(double *inv_freq, const ql_config *config);

/* cos, sin [n, half] of the positions first ... first + n - 1. */
void ql_rope_table(float *cos, float *sin, const double *inv_freq, int half, int64_t first, int n);

#endif
