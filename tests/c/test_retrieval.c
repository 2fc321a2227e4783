/* Ranking, pinning and excerpts against what they must equal. */
#include <math.h>
#include <stdio.h>

#include "check.h"
#include "tiny.h"

enum { N = 140, VOCAB = 61, D = 10, HEADS = 4, LAYERS = 3, WIDTH = HEADS * D, P = 4, N_INIT = 5 };

static int32_t ids[N];
static ql_model *model;

static ql_memory_config memory_of(int topk) {
    return (ql_memory_config){.mode = QL_INFLLM,
                              .n_init = N_INIT,
                              .n_local = 16,
                              .block_size = P,
                              .topk = topk,
                              .repr_topk = P,
                              .exc_block_size = 12,
                              .kv_dtype = QL_F32,
                              .trace = QL_TRACE_SCORES};
}

static ql_session *reader_of(int topk) {
    ql_error err = {0};
    ql_memory_config memory = memory_of(topk);
    ql_session *s = ql_session_new(model, &memory, &err);
    CHECK_EQUAL(ql_session_feed(s, ids, N, &(ql_feed){0}, NULL, &err), QL_OK);
    return s;
}

/* With repr_topk = block_size a block's vector is the mean of its keys, so in pieces of one token
 * the scores of a block's tokens average to <query, vector>. */
static void ranks_by_the_best_key(void) {
    enum { TOKENS = 20 * P };
    ql_error err = {0};
    ql_session *s = reader_of(0);
    const ql_head heads[] = {{2, 3}, {0, 1}};
    float queries[2][5][D], vectors[40 * WIDTH], single[2][TOKENS], pieces[2][(TOKENS + 6) / 7];
    uint64_t seed = 5;
    for (int i = 0; i < 2 * 5 * D; i++) (&queries[0][0][0])[i] = tiny_random(&seed);
    CHECK_EQUAL(ql_session_rank(s, heads, 2, &queries[0][0][0], 5, N_INIT, N_INIT + TOKENS, 1,
                                &single[0][0], &err),
                QL_OK);
    for (int h = 0; h < 2; h++) {
        CHECK_EQUAL(ql_session_block_vectors(s, heads[h].layer, vectors, &err), QL_OK);
        for (int b = 0; b < TOKENS / P; b++) {
            double expected = 0, got = 0;
            for (int q = 0; q < 5; q++)
                for (int d = 0; d < D; d++)
                    expected += queries[h][q][d] * vectors[b * WIDTH + heads[h].head * D + d] / 5;
            for (int t = 0; t < P; t++) got += single[h][b * P + t] / P;
            CHECK_NEAR(got, expected, 1e-4);
        }
    }
    /* One query: the score of a longer piece is the largest of its tokens' scores. */
    CHECK_EQUAL(ql_session_rank(s, heads, 2, &queries[0][0][0], 1, N_INIT, N_INIT + TOKENS, 1,
                                &single[0][0], &err),
                QL_OK);
    CHECK_EQUAL(ql_session_rank(s, heads, 2, &queries[0][0][0], 1, N_INIT, N_INIT + TOKENS, 7,
                                &pieces[0][0], &err),
                QL_OK);
    for (int p = 0; p < (TOKENS + 6) / 7; p++) {
        float best = -INFINITY;
        for (int t = p * 7; t < TOKENS && t < p * 7 + 7; t++) best = fmaxf(best, single[0][t]);
        CHECK_NEAR(pieces[0][p], best, 0);
    }
    CHECK_EQUAL(
        ql_session_rank(s, heads, 2, &queries[0][0][0], 1, 3, N + 1, 1, &single[0][0], &err),
        QL_INVALID_VALUE);
    ql_session_free(s);
}

/* The mean query is the mean of what listening hears, whatever the chunks. */
static void listens_to_heads(void) {
    ql_error err = {0};
    ql_memory_config memory = memory_of(2);
    ql_session *s = ql_session_new(model, &memory, &err);
    static float queries[LAYERS * HEADS][N][D];
    ql_head heads[LAYERS * HEADS];
    for (int i = 0; i < LAYERS * HEADS; i++) heads[i] = (ql_head){i / HEADS, i % HEADS};
    ql_feed feed = {.heads = heads, .n_heads = LAYERS * HEADS, .queries = &queries[0][0][0]};
    CHECK_EQUAL(ql_session_feed(s, ids, N, &feed, NULL, &err), QL_OK);
    for (int layer = 0; layer < LAYERS; layer++) {
        float mean[WIDTH];
        CHECK_EQUAL(ql_session_mean_query(s, layer, mean, &err), QL_OK);
        for (int i = 0; i < WIDTH; i++) {
            double expected = 0;
            for (int t = 0; t < N; t++) expected += queries[layer * HEADS + i / D][t][i % D] / N;
            CHECK_NEAR(mean[i], expected, 1e-5);
        }
    }
    heads[0].head = HEADS;
    CHECK_EQUAL(ql_session_feed(s, ids, N, &feed, NULL, &err), QL_INVALID_VALUE);
    ql_session_free(s);
}

static void pins_blocks(void) {
    ql_error err = {0};
    ql_session *s = reader_of(2), *free_choice = ql_session_fork(s, QL_TRACE_SCORES, &err);
    const int32_t pinned[] = {0, 3, 4, 9};
    float with[VOCAB], without[VOCAB];
    int64_t before = ql_session_trace_count(s);
    CHECK_EQUAL(ql_session_pin(s, pinned, 4, &err), QL_OK);
    CHECK_EQUAL(ql_session_feed(s, ids, 1, &(ql_feed){0}, with, &err), QL_OK);
    CHECK_EQUAL(ql_session_feed(free_choice, ids, 1, &(ql_feed){0}, without, &err), QL_OK);
    CHECK(memcmp(with, without, sizeof with) != 0);
    CHECK_EQUAL(ql_session_trace_count(s), before + LAYERS);
    for (int64_t i = before; i < ql_session_trace_count(s); i++) {
        const ql_trace_record *record = ql_session_trace(s, i);
        CHECK_EQUAL(record->n_chosen, 4);
        CHECK_SAME_BITS(record->block_ids, pinned, sizeof pinned);
    }
    ql_session *fork = ql_session_fork(s, QL_TRACE_SCORES, &err); /* a fork goes on with the pins */
    CHECK_EQUAL(ql_session_feed(fork, ids + 1, 1, &(ql_feed){0}, without, &err), QL_OK);
    CHECK_EQUAL(ql_session_trace(fork, 0)->n_chosen, 4);
    ql_session_free(fork);
    const int32_t wrong[] = {3, 3}, beyond[] = {1000};
    CHECK_EQUAL(ql_session_pin(s, wrong, 2, &err), QL_INVALID_VALUE);
    CHECK_EQUAL(ql_session_pin(s, beyond, 1, &err), QL_INVALID_VALUE);
    CHECK_EQUAL(ql_session_pin(s, NULL, 0, &err), QL_OK); /* none at all */
    CHECK_EQUAL(ql_session_feed(s, ids, 1, &(ql_feed){0}, with, &err), QL_OK);
    CHECK_EQUAL(ql_session_trace(s, ql_session_trace_count(s) - 1)->n_chosen, 0);
    CHECK_EQUAL(ql_session_pin(s, NULL, -1, &err), QL_OK);
    CHECK_EQUAL(ql_session_feed(s, ids, 1, &(ql_feed){0}, with, &err), QL_OK);
    CHECK_EQUAL(ql_session_trace(s, ql_session_trace_count(s) - 1)->n_chosen, 2);
    ql_session_free(free_choice);
    ql_session_free(s);
}

/* An excerpt of all that was read by full attention's equal goes on as full attention does: the
 * window holds everything. */
static void an_excerpt_of_everything_is_full_attention(void) {
    enum { SHORT = 14 };
    ql_error err = {0};
    ql_memory_config window = memory_of(2), full = memory_of(2);
    full.mode = QL_FULL;
    ql_session *s = ql_session_new(model, &window, &err),
               *reference = ql_session_new(model, &full, &err);
    CHECK_EQUAL(ql_session_feed(s, ids, SHORT, &(ql_feed){0}, NULL, &err), QL_OK);
    CHECK_EQUAL(ql_session_feed(reference, ids, SHORT, &(ql_feed){0}, NULL, &err), QL_OK);
    const int64_t all[] = {0, 3, 3, SHORT}, overlapping[] = {0, 4, 3, 6}, beyond[] = {2, SHORT + 1};
    ql_session *excerpt = ql_session_excerpt(s, all, 2, &err);
    CHECK(excerpt != NULL);
    CHECK_EQUAL(ql_session_length(excerpt), SHORT);
    float got[VOCAB], expected[VOCAB];
    CHECK_EQUAL(ql_session_feed(excerpt, ids + SHORT, 9, &(ql_feed){0}, got, &err), QL_OK);
    CHECK_EQUAL(ql_session_feed(reference, ids + SHORT, 9, &(ql_feed){0}, expected, &err), QL_OK);
    for (int i = 0; i < VOCAB; i++) CHECK_NEAR(got[i], expected[i], 1e-4);
    CHECK(!ql_session_excerpt(s, overlapping, 2, &err));
    CHECK(!ql_session_excerpt(s, beyond, 1, &err));
    CHECK(!ql_session_excerpt(s, all, 0, &err));
    CHECK(!ql_session_excerpt(reference, all, 1, &err)); /* full attention keeps rotated keys */
    ql_session_free(excerpt);
    ql_session_free(reference);
    ql_session_free(s);
}

int main(void) {
    ql_error err = {0};
    ql_config config = tiny_config();
    uint64_t seed = 12;
    for (int i = 0; i < N; i++) ids[i] = (int32_t)((tiny_random(&seed) + 1) / 2 * VOCAB);
    model = tiny_model(&config, QL_F32, 2, &err);
    RUN(ranks_by_the_best_key);
    RUN(listens_to_heads);
    RUN(pins_blocks);
    RUN(an_excerpt_of_everything_is_full_attention);
    ql_model_free(model);
    return check_report("test_retrieval");
}
