/* window.h - the sliding window of all layers: keys rotated to their positions, and each waiting
 * token's local score so far. Rows are tokens; old ones leave when room is needed, so that a token
 * costs one write and now and then a move. */
#ifndef QL_WINDOW_H
#define QL_WINDOW_H

#include "kv.h"

typedef struct ql_window {
    ql_heads heads;
    ql_dtype dtype; /* of keys: QL_F32 or QL_BF16 */
    int64_t first;  /* token of row 0 */
    int capacity;   /* rows */
    void *keys;     /* [L, G, capacity, D] */
    float *scores;  /* [L, H, capacity] */
} ql_window;

/* most: rows that must fit at once; as many again give moves something to be rare with. */
ql_status ql_window_init(ql_window *window, ql_heads heads, ql_dtype dtype, int most,
                         ql_error *err);
/* Makes room for tokens up to end; of the old ones, only those from keep on stay. New rows have
 * score 0. */
void ql_window_advance(ql_window *window, int64_t keep, int64_t begin, int64_t end);
void *ql_window_key(const ql_window *window, int layer, int g, int64_t token);
size_t ql_window_head_bytes(const ql_window *window); /* between the keys of two kv heads */
float *ql_window_scores(const ql_window *window, int layer, int h, int64_t token);
/* Makes *to (uninitialised) hold what *from holds of the tokens before end. */
ql_status ql_window_fork(ql_window *to, const ql_window *from, int64_t end, ql_error *err);
/* Bytes of the keys and of the scores of n tokens. */
size_t ql_window_key_bytes(const ql_window *window, int64_t n);
size_t ql_window_score_bytes(const ql_window *window, int64_t n);
/* Copies what the tokens [begin, end) have: keys [L, G, end - begin, D], scores
 * [L, H, end - begin]; NULL: not these. And puts them into an empty window. */
void ql_window_take(const ql_window *window, int64_t begin, int64_t end, void *keys, float *scores);
void ql_window_put(ql_window *window, int64_t begin, int64_t end, const void *keys,
                   const float *scores);
void ql_window_clear(ql_window *window); /* frees */
size_t ql_window_bytes(const ql_window *window);

#endif
