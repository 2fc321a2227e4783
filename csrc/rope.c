#define _GNU_SOURCE
#include "rope.h"

#include <math.h>

/* Llama 3.1's scaling: long wavelengths are divided by rope_factor, short ones kept, those between
 * blended (transformers, modeling_rope_utils.py, _compute_llama3_parameters). */
static double llama3(double freq, const ql_config *c) {
    double wavelength = 2 * M_PI / freq, old = c->rope_original_max_position;
    if (wavelength > old / c->rope_low_freq_factor) return freq / c->rope_factor;
    if (wavelength < old / c->rope_high_freq_factor) return freq;
    double smooth = (old / wavelength - c->rope_low_freq_factor) /
                    (c->rope_high_freq_factor - c->rope_low_freq_factor);
    return (1 - smooth) * freq / c->rope_factor + smooth * freq;
}

void ql_rope_frequencies(double *inv_freq, const ql_config *config) {
    for (int i = 0; i < config->head_dim / 2; i++) {
        double freq = pow(config->rope_theta, -2.0 * i / config->head_dim);
        if (config->rope_type == QL_ROPE_LINEAR) freq /= config->rope_factor;
        if (config->rope_type == QL_ROPE_LLAMA3) freq = llama3(freq, config);
        inv_freq[i] = freq;
    }
}

void ql_rope_table(float *cos_, float *sin_, const double *inv_freq, int half, int64_t first,
                   int n) {
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < half; i++) {
            double s, c;
            sincos((double)(first + t) * inv_freq[i], &s, &c);
            cos_[(size_t)t * half + i] = (float)c;
            sin_[(size_t)t * half + i] = (float)s;
        }
    }
}
