/* Skimming against what it must equal: the first layers of a session that computes all of them. */
#include <stdio.h>

#include "check.h"
#include "keys.h"
#include "timeline.h"
#include "tiny.h"

enum { N = 1200, VOCAB = 61, D = 10, HEADS = 4, GROUP = 2, LAYERS = 3, WIDTH = HEADS * D };
enum { N_INIT = 5, EXC = 12, PIECE = 16, PIECES = N / PIECE };

static const ql_head KEPT[] = {{1, 3}, {0, 1}}; /* of the last layer that is computed, and below */
enum { N_KEPT = 2, COMPUTED = 2 };

static int32_t ids[N];
static ql_model *model;

static ql_memory_config memory_of(ql_mode mode, ql_dtype dtype) {
    return (ql_memory_config){.mode = mode,
                              .n_init = N_INIT,
                              .n_local = 16,
                              .block_size = 4,
                              .repr_topk = 4,
                              .exc_block_size = EXC,
                              .kv_dtype = dtype};
}

static ql_session *skimmer_of(ql_model *of, ql_dtype dtype) {
    ql_error err = {0};
    ql_memory_config memory = memory_of(QL_STREAM, dtype);
    ql_session *s = ql_session_skim(of, &memory, KEPT, N_KEPT, &err);
    CHECK(s != NULL);
    return s;
}

static void feed(ql_session *s, int64_t from, int64_t to) {
    ql_error err = {0};
    CHECK_EQUAL(ql_session_feed(s, ids + from, to - from, &(ql_feed){0}, NULL, &err), QL_OK);
}

/* scores [N_KEPT, PIECES] of two queries that are the same for all. */
static void rank(ql_session *s, float *scores) {
    ql_error err = {0};
    float queries[N_KEPT * 2 * D];
    uint64_t seed = 5;
    for (int i = 0; i < N_KEPT * 2 * D; i++) queries[i] = tiny_random(&seed);
    CHECK_EQUAL(ql_session_rank(s, KEPT, N_KEPT, queries, 2, 0, N, PIECE, scores, &err), QL_OK);
}

/* Everything that skimming is for: the scores, and behind them the means of the layers' queries. */
enum { RESULTS = N_KEPT * PIECES + COMPUTED * WIDTH };
static void results_of(ql_session *s, float *results) {
    ql_error err = {0};
    rank(s, results);
    for (int layer = 0; layer < COMPUTED; layer++)
        CHECK_EQUAL(
            ql_session_mean_query(s, layer, results + N_KEPT * PIECES + layer * WIDTH, &err),
            QL_OK);
}

static void expect_results(ql_session *s, const float *expected) {
    float results[RESULTS];
    results_of(s, results);
    CHECK_SAME_BITS(results, expected, sizeof results);
}

/* Chunk after chunk, the keys that are kept are those that a whole session has in its pages before
 * it forgets them. (StreamingLLM's first tokens lie there rotated.) */
static void keys_are_those_of_all_layers(void) {
    const ql_mode modes[] = {QL_STREAM, QL_INFINITE};
    const ql_dtype dtypes[] = {QL_F32, QL_BF16, QL_INT8};
    for (int which = 0; which < 6; which++) {
        ql_error err = {0};
        ql_memory_config memory = memory_of(modes[which / 3], dtypes[which % 3]);
        ql_session *whole = ql_session_new(model, &memory, &err),
                   *skim = ql_session_skim(model, &memory, KEPT, N_KEPT, &err);
        size_t row = ql_row_bytes(memory.kv_dtype, D);
        for (int64_t at = 0; at < N; at += EXC) {
            feed(whole, at, at + EXC);
            feed(skim, at, at + EXC);
            for (int64_t token = at; token < at + EXC; token++) {
                if (memory.mode == QL_STREAM && token < N_INIT) continue;
                for (int i = 0; i < N_KEPT; i++) {
                    int g = KEPT[i].head / GROUP;
                    ql_span page = ql_kv_span(&whole->memory.kv, KEPT[i].layer, token, 1),
                            kept = ql_keys_span(&skim->memory.keys, KEPT[i].layer, g, token, 1);
                    CHECK_SAME_BITS(kept.k, (const char *)page.k + g * page.k_stride, row);
                }
            }
        }
        ql_session_free(skim);
        ql_session_free(whole);
    }
}

/* Ranks by the best key of each piece, as a loop over all keys finds it. */
static void ranks_every_token(void) {
    ql_session *s = skimmer_of(model, QL_F32);
    feed(s, 0, N);
    float scores[N_KEPT * PIECES], queries[N_KEPT][2][D];
    uint64_t seed = 5;
    for (int i = 0; i < N_KEPT * 2 * D; i++) (&queries[0][0][0])[i] = tiny_random(&seed);
    rank(s, scores);
    for (int i = 0; i < N_KEPT; i++)
        for (int p = 0; p < PIECES; p++) {
            double sum = 0;
            for (int q = 0; q < 2; q++) {
                double best = -1e30;
                for (int64_t token = p * PIECE; token < (p + 1) * PIECE; token++) {
                    const float *key =
                        ql_keys_span(&s->memory.keys, KEPT[i].layer, KEPT[i].head / GROUP, token, 1)
                            .k;
                    double product = 0;
                    for (int d = 0; d < D; d++) product += key[d] * queries[i][q][d];
                    if (product > best) best = product;
                }
                sum += best;
            }
            CHECK_NEAR(scores[i * PIECES + p], sum / 2, 1e-4);
        }
    ql_session_free(s);
}

/* As long as nothing has left the window, a session that keeps everything ranks with the same bits;
 * and it hears the same queries. */
static void a_short_text_is_ranked_as_ever(void) {
    enum { SHORT = 16 };
    ql_error err = {0};
    ql_memory_config blocks = memory_of(QL_INFLLM, QL_F32);
    ql_session *skim = skimmer_of(model, QL_F32), *whole = ql_session_new(model, &blocks, &err);
    float heard[2][N_KEPT][SHORT][D], scores[2][N_KEPT][SHORT], means[2][WIDTH];
    for (int i = 0; i < 2; i++) {
        ql_session *s = i ? whole : skim;
        ql_feed listening = {.heads = KEPT, .n_heads = N_KEPT, .queries = &heard[i][0][0][0]};
        CHECK_EQUAL(ql_session_feed(s, ids, SHORT, &listening, NULL, &err), QL_OK);
        CHECK_EQUAL(ql_session_rank(s, KEPT, N_KEPT, &heard[0][0][0][0], SHORT, 0, SHORT, 1,
                                    &scores[i][0][0], &err),
                    QL_OK);
        CHECK_EQUAL(ql_session_mean_query(s, 1, means[i], &err), QL_OK);
    }
    CHECK_SAME_BITS(heard[0], heard[1], sizeof heard[0]);
    CHECK_SAME_BITS(scores[0], scores[1], sizeof scores[0]);
    CHECK_SAME_BITS(means[0], means[1], sizeof means[0]);
    ql_session_free(whole);
    ql_session_free(skim);
}

static bool stop_at(void *context) { return --*(int *)context < 0; }

/* Neither threads nor cuts, interruptions, forks or a reset change a bit. */
static void the_same_bits_of(ql_dtype dtype) {
    ql_error err = {0};
    float expected[RESULTS];
    ql_session *s = skimmer_of(model, dtype);
    feed(s, 0, N);
    results_of(s, expected);
    const int threads[] = {1, 3, 5};
    for (int i = 0; i < 3; i++) {
        ql_config config = tiny_config();
        ql_model *other = tiny_model(&config, QL_F32, threads[i], &err);
        ql_session *own = skimmer_of(other, dtype);
        for (int64_t at = 0, n; at < N; at += n) {
            n = at + 7 * EXC < N ? 7 * EXC : N - at;
            feed(own, at, at + n);
        }
        expect_results(own, expected);
        ql_session_free(own);
        ql_model_free(other);
    }
    CHECK_EQUAL(ql_session_reset(s, &err), QL_OK);
    CHECK_EQUAL(ql_session_length(s), 0);
    int polls = 200; /* three a chunk */
    ql_feed stopping = {.poll = stop_at, .poll_context = &polls};
    CHECK_EQUAL(ql_session_feed(s, ids, N, &stopping, NULL, &err), QL_CANCELLED);
    int64_t read = ql_session_length(s);
    CHECK(read > 512 && read < N && read % EXC == 0);
    ql_session *fork = ql_session_fork(s, QL_TRACE_NOTHING, &err),
               *astray = ql_session_fork(s, QL_TRACE_NOTHING, &err);
    feed(astray, 0, 700); /* writes behind what the others share */
    feed(s, read, N);
    ql_session_free(astray);
    feed(fork, read, N);
    expect_results(s, expected);
    ql_session_free(s);
    expect_results(fork, expected);
    ql_session_free(fork);
}

static void the_same_bits_come_out(void) {
    the_same_bits_of(QL_BF16);
    the_same_bits_of(QL_INT8);
}

static void holds_little(void) {
    const size_t rows[] = {D * sizeof(uint16_t), D + sizeof(float)}; /* bytes of a key */
    for (int which = 0; which < 2; which++) {
        ql_session *s = skimmer_of(model, which ? QL_INT8 : QL_BF16);
        feed(s, 0, 600);
        size_t before = ql_session_bytes(s);
        feed(s, 600, N);
        size_t slab = 512 * 2 * rows[which]; /* of two key heads */
        CHECK(ql_session_bytes(s) - before >= slab && ql_session_bytes(s) - before < 2 * slab);
        ql_session_free(s);
    }
}

/* Pages that leave the window are used again, so that memory neither grows nor is had anew; a fork
 * that still owns them keeps them as they are. */
static void pages_go_round(void) {
    ql_error err = {0};
    ql_memory_config memory = memory_of(QL_STREAM, QL_F32);
    ql_session *s = ql_session_new(model, &memory, &err), *fork = NULL;
    float once[VOCAB], twice[VOCAB];
    feed(s, 0, 600);
    const ql_store *pages = &s->memory.kv.pages;
    int64_t spare = pages->n_spare;
    CHECK(spare >= EXC / memory.block_size);
    fork = ql_session_fork(s, QL_TRACE_NOTHING, &err);
    CHECK_EQUAL(fork->memory.kv.pages.n_spare, 0);
    size_t before = ql_session_bytes(s), table = 2 * sizeof *pages->slabs * N / memory.block_size;
    feed(s, 600, N - 1);
    CHECK(ql_session_bytes(s) <= before + table + 2 * (size_t)spare * pages->slab_bytes);
    feed(fork, 600, N - 1);
    ql_session *sessions[] = {s, fork};
    for (int i = 0; i < 2; i++)
        CHECK_EQUAL(ql_session_feed(sessions[i], ids, 1, &(ql_feed){0}, i ? twice : once, &err),
                    QL_OK);
    CHECK_SAME_BITS(once, twice, sizeof once);
    ql_session_free(fork);
    ql_session_free(s);
}

static void refuses_what_it_has_not(void) {
    ql_error err = {0};
    ql_session *s = skimmer_of(model, QL_F32);
    float floats[VOCAB * WIDTH];
    const ql_head beyond = {2, 0}, other = {1, 0}, same_keys = {1, 2}, none = {3, 0};
    CHECK_EQUAL(ql_session_layers(s), COMPUTED);
    CHECK(ql_session_skims(s));
    CHECK_EQUAL(ql_session_feed(s, ids, 40, &(ql_feed){0}, floats, &err), QL_INVALID_VALUE);
    CHECK_EQUAL(ql_session_length(s), 0);
    feed(s, 0, 40);
    ql_feed listening = {.heads = &beyond, .n_heads = 1, .queries = floats};
    CHECK_EQUAL(ql_session_feed(s, ids, 3, &listening, NULL, &err), QL_INVALID_VALUE);
    listening.heads = &other; /* all queries of its layer are there */
    CHECK_EQUAL(ql_session_feed(s, ids, 3, &listening, NULL, &err), QL_OK);
    CHECK_EQUAL(ql_session_rank(s, &other, 1, floats, 1, 0, 9, 3, floats, &err), QL_INVALID_VALUE);
    CHECK_EQUAL(ql_session_rank(s, &same_keys, 1, floats, 1, 0, 9, 3, floats + D, &err), QL_OK);
    CHECK_EQUAL(ql_session_mean_query(s, COMPUTED, floats, &err), QL_INVALID_VALUE);
    CHECK_EQUAL(ql_session_pin(s, NULL, 0, &err), QL_INVALID_VALUE);
    CHECK(!ql_session_excerpt(s, (int64_t[]){0, 3}, 1, &err));
    ql_session_free(s);
    const ql_mode wrong[] = {QL_FULL, QL_INFLLM, QL_QLLM};
    for (int i = 0; i < 3; i++) {
        ql_memory_config memory = memory_of(wrong[i], QL_F32);
        CHECK(!ql_session_skim(model, &memory, KEPT, N_KEPT, &err));
        CHECK_EQUAL(err.code, QL_INVALID_VALUE);
    }
    ql_memory_config memory = memory_of(QL_STREAM, QL_F32);
    CHECK(!ql_session_skim(model, &memory, &none, 1, &err));
    CHECK(!ql_session_skim(model, &memory, KEPT, 0, &err));
}

int main(void) {
    ql_error err = {0};
    ql_config config = tiny_config();
    uint64_t seed = 12;
    for (int i = 0; i < N; i++) ids[i] = (int32_t)((tiny_random(&seed) + 1) / 2 * VOCAB);
    model = tiny_model(&config, QL_F32, 2, &err);
    RUN(keys_are_those_of_all_layers);
    RUN(ranks_every_token);
    RUN(a_short_text_is_ranked_as_ever);
    RUN(the_same_bits_come_out);
    RUN(holds_little);
    RUN(pages_go_round);
    RUN(refuses_what_it_has_not);
    ql_model_free(model);
    return check_report("test_skim");
}
