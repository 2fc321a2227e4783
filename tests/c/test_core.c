/* The core by its public header alone: every mode, transactions, forks, sharing between threads,
 * refusals. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>

#include "check.h"
#include "tiny.h"

enum { N = 157, VOCAB = 61, WIDTH = 40 };

static int32_t ids[N];

static ql_memory_config memory_of(ql_mode mode) {
    return (ql_memory_config){.mode = mode,
                              .n_init = 5,
                              .n_local = 16,
                              .block_size = 4,
                              .topk = 3,
                              .repr_topk = 2,
                              .exc_block_size = 12,
                              .question_weight = 1,
                              .kv_dtype = QL_F32,
                              .trace = QL_TRACE_SCORES};
}

static ql_model *model_with(int n_threads) {
    ql_error err = {0};
    ql_config config = tiny_config();
    ql_model *model = tiny_model(&config, QL_F32, n_threads, &err);
    if (!model) printf("    %s\n", err.text);
    return model;
}

/* A session in this mode, with tokens 2 to 6 as its question in mode qllm. */
static ql_session *session_in(ql_model *model, ql_mode mode) {
    ql_error err = {0};
    ql_memory_config memory = memory_of(mode);
    ql_session *s = ql_session_new(model, &memory, &err);
    if (s && mode == QL_QLLM) CHECK_EQUAL(ql_session_set_question(s, 2, 6, &err), QL_OK);
    return s;
}

static void feed(ql_session *s, int from, int to, float *logits) {
    ql_error err = {0};
    ql_feed all = {.all_logits = true};
    CHECK_EQUAL(
        ql_session_feed(s, ids + from, to - from, &all, logits + (size_t)from * VOCAB, &err),
        QL_OK);
    if (err.code) printf("    %s\n", err.text);
}

static void threads_and_splits_change_no_bit(void) {
    for (ql_mode mode = QL_FULL; mode <= QL_QLLM; mode++) {
        float expected[N * VOCAB], got[N * VOCAB];
        for (int n_threads = 1; n_threads <= 5; n_threads++) {
            ql_model *model = model_with(n_threads);
            ql_session *s = session_in(model, mode);
            ql_model_free(model); /* the session keeps it alive */
            if (n_threads == 1) {
                feed(s, 0, N, expected);
            } else { /* pieces of 36, three chunks each */
                for (int at = 0; at < N; at += 36) feed(s, at, at + 36 < N ? at + 36 : N, got);
                CHECK_SAME_BITS(got, expected, sizeof got);
            }
            CHECK_EQUAL(ql_session_length(s), N);
            ql_session_free(s);
        }
    }
}

static void forks_go_on_by_themselves(void) {
    ql_error err = {0};
    ql_model *model = model_with(2);
    for (ql_mode mode = QL_FULL; mode <= QL_QLLM; mode++) {
        static float expected[N * VOCAB], got[N * VOCAB], other[N * VOCAB];
        ql_session *s = session_in(model, mode);
        feed(s, 0, 60, expected);
        ql_session *fork = ql_session_fork(s, QL_TRACE_SCORES, &err),
                   *aside = ql_session_fork(s, QL_TRACE_SCORES, &err);
        CHECK(fork && aside);
        feed(aside, 90, 130, other); /* another continuation must not be seen */
        feed(s, 60, N, expected);
        ql_session_free(s);
        feed(fork, 60, N, got);
        CHECK_SAME_BITS(got + 60 * VOCAB, expected + 60 * VOCAB, (N - 60) * VOCAB * sizeof *got);
        CHECK(memcmp(other + 90 * VOCAB, expected + 90 * VOCAB, VOCAB * sizeof *got) != 0);
        ql_session_free(aside);
        ql_session_free(fork);
    }
    ql_model_free(model);
}

static bool stop_after(void *context) { return --*(int *)context < 0; }

static void an_interrupted_chunk_never_was(void) {
    ql_model *model = model_with(2);
    for (ql_mode mode = QL_FULL; mode <= QL_QLLM; mode++) {
        static float expected[N * VOCAB], got[N * VOCAB];
        ql_session *whole = session_in(model, mode);
        feed(whole, 0, N, expected);
        for (int polls = 0; polls < 30; polls += 3) { /* 4 polls a chunk: stops in every layer */
            ql_session *s = session_in(model, mode);
            ql_error err = {0};
            int left = polls;
            ql_feed options = {.all_logits = true, .poll = stop_after, .poll_context = &left};
            CHECK_EQUAL(ql_session_feed(s, ids, N, &options, got, &err), QL_CANCELLED);
            int at = (int)ql_session_length(s);
            CHECK_EQUAL(at, polls / 4 * 12);
            CHECK_EQUAL(ql_session_trace_count(s), at / 12 * 3);
            feed(s, at, N, got);
            CHECK_SAME_BITS(got, expected, sizeof got);
            CHECK_EQUAL(ql_session_trace_count(s), ql_session_trace_count(whole));
            ql_session_free(s);
        }
        ql_session_free(whole);
    }
    ql_model_free(model);
}

/* One token at a time to token `to`, all logits. */
static void feed_singly(ql_session *s, int from, int to, float *logits) {
    for (int at = from; at < to; at++) feed(s, at, at + 1, logits);
}

static void an_interrupted_look_up_never_was(void) {
    ql_error err = {0};
    ql_model *model = model_with(2);
    static float expected[N * VOCAB], got[N * VOCAB], each[N * VOCAB];
    ql_memory_config memory = memory_of(QL_QLLM);
    for (memory.lookup_interval = 0; memory.lookup_interval <= 7; memory.lookup_interval += 7) {
        ql_session *whole = ql_session_new(model, &memory, &err);
        feed(whole, 0, 72, expected);
        feed_singly(whole, 72, 90, expected);
        for (int polls = 1; polls < 4; polls++) {
            ql_session *s = ql_session_new(model, &memory, &err);
            feed(s, 0, 72, got);
            feed_singly(s, 72, 75, got);
            int left = polls; /* stops when some layers have looked up for a longer chunk */
            ql_feed options = {
                .question_begin = 3, .question_end = 9, .poll = stop_after, .poll_context = &left};
            CHECK_EQUAL(ql_session_feed(s, ids + 100, 12, &options, NULL, &err), QL_CANCELLED);
            CHECK_EQUAL(ql_session_length(s), 75);
            ql_session *fork = ql_session_fork(s, QL_TRACE_NOTHING, &err);
            feed_singly(s, 75, 90, got);
            CHECK_SAME_BITS(got, expected, 90 * VOCAB * sizeof *got);
            feed_singly(fork, 75, 90, got);
            CHECK_SAME_BITS(got, expected, 90 * VOCAB * sizeof *got);
            ql_session_free(fork);
            ql_session_free(s);
        }
        ql_session_free(whole);
        if (!memory.lookup_interval) memcpy(each, expected, sizeof each);
    }
    CHECK_SAME_BITS(each, expected, 73 * VOCAB * sizeof *each);
    CHECK(memcmp(each + 73 * VOCAB, expected + 73 * VOCAB, 17 * VOCAB * sizeof *each) != 0);
    ql_model_free(model);
}

static void reset_is_a_new_session(void) {
    ql_error err = {0};
    ql_model *model = model_with(2);
    for (ql_mode mode = QL_FULL; mode <= QL_QLLM; mode++) {
        static float expected[N * VOCAB], got[N * VOCAB];
        ql_session *s = session_in(model, mode);
        feed(s, 0, N, expected);
        CHECK_EQUAL(ql_session_reset(s, &err), QL_OK);
        CHECK_EQUAL(ql_session_length(s), 0);
        CHECK_EQUAL(ql_session_blocks(s), 0);
        feed(s, 0, N, got);
        CHECK_SAME_BITS(got, expected, sizeof got);
        ql_session_free(s);
    }
    ql_model_free(model);
}

static void the_question_and_the_lookup_matter(void) {
    ql_error err = {0};
    ql_model *model = model_with(2);
    static float with[N * VOCAB], without[N * VOCAB];
    float vector[WIDTH];
    for (int change = 0; change < 2; change++) {
        ql_memory_config memory = memory_of(QL_QLLM);
        if (change == 0)
            memory.question_weight = 0;
        else
            memory.topk = 0;
        ql_session *s = session_in(model, QL_QLLM), *changed = ql_session_new(model, &memory, &err);
        CHECK_EQUAL(ql_session_set_question(changed, 2, 6, &err), QL_OK);
        CHECK_EQUAL(ql_session_question_vector(s, 0, vector, &err), QL_INVALID_VALUE);
        feed(s, 0, N, with);
        feed(changed, 0, N, without);
        CHECK_EQUAL(ql_session_question_vector(s, 0, vector, &err), QL_OK);
        CHECK(memcmp(with, without, sizeof with) != 0);
        ql_session_free(changed);
        ql_session_free(s);
    }
    ql_model_free(model);
}

/* Many sessions over one model, from many threads. */
typedef struct reader {
    ql_model *model;
    float logits[N * VOCAB];
} reader;

static void *read_all(void *context) {
    reader *r = context;
    ql_session *s = session_in(r->model, QL_QLLM);
    feed(s, 0, N, r->logits);
    ql_session_free(s);
    return NULL;
}

static void a_model_serves_many_threads(void) {
    enum { READERS = 4 };
    static reader readers[READERS];
    pthread_t threads[READERS];
    ql_model *model = model_with(2);
    for (int i = 0; i < READERS; i++) {
        readers[i].model = model;
        pthread_create(&threads[i], NULL, read_all, &readers[i]);
    }
    for (int i = 0; i < READERS; i++) pthread_join(threads[i], NULL);
    for (int i = 1; i < READERS; i++)
        CHECK_SAME_BITS(readers[i].logits, readers[0].logits, sizeof readers[0].logits);
    ql_model_free(model);
}

typedef struct intruder {
    ql_session *session;
    ql_status status;
    bool tried;
} intruder;

static bool
intrude(void *context) { /* polled while the session is at work: to itself it is another user */
    intruder *x = context;
    ql_error err = {0};
    x->status = ql_session_reset(x->session, &err);
    x->tried = true;
    return false;
}

static void a_busy_session_says_so(void) {
    ql_error err = {0};
    ql_model *model = model_with(1);
    ql_session *s = session_in(model, QL_INFLLM);
    intruder x = {.session = s};
    ql_feed options = {.poll = intrude, .poll_context = &x};
    CHECK_EQUAL(ql_session_feed(s, ids, N, &options, NULL, &err), QL_OK);
    CHECK(x.tried);
    CHECK_EQUAL(x.status, QL_BUSY);
    ql_session_free(s);
    ql_model_free(model);
}

static void an_unread_question_replaces_nothing(void) {
    ql_error err = {0};
    ql_model *model = model_with(1);
    ql_session *s = session_in(model, QL_QLLM);
    static float logits[N * VOCAB];
    float before[WIDTH], after[WIDTH];
    feed(s, 0, 60, logits);
    CHECK_EQUAL(ql_session_question_vector(s, 1, before, &err), QL_OK);
    int left = 0; /* stopped in the first layer of the first chunk */
    ql_feed options = {
        .question_begin = 3, .question_end = 9, .poll = stop_after, .poll_context = &left};
    CHECK_EQUAL(ql_session_feed(s, ids + 60, 36, &options, NULL, &err), QL_CANCELLED);
    CHECK_EQUAL(ql_session_question_vector(s, 1, after, &err), QL_OK);
    CHECK_SAME_BITS(after, before, sizeof before);
    feed(s, 60, N, logits);
    options.poll = NULL;
    CHECK_EQUAL(ql_session_feed(s, ids, 36, &options, NULL, &err), QL_OK);
    CHECK_EQUAL(ql_session_question_vector(s, 1, after, &err), QL_OK);
    CHECK(memcmp(after, before, sizeof before) != 0);
    ql_session_free(s);
    ql_model_free(model);
}

static void refusals_are_sentences(void) {
    ql_error err = {0};
    ql_model *model = model_with(1);
    ql_session *s = session_in(model, QL_QLLM);
    ql_feed none = {0};
    int32_t wrong[] = {3, VOCAB};
    CHECK_EQUAL(ql_session_feed(s, wrong, 2, &none, NULL, &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "token id 61 at position 1");
    CHECK_EQUAL(ql_session_feed(s, ids, 0, &none, NULL, &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "empty");
    CHECK_EQUAL(ql_session_set_question(s, 0, 17, &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "more than the window");
    CHECK_EQUAL(ql_session_set_question(s, 12, 20, &err), QL_OK);
    CHECK_EQUAL(ql_session_feed(s, ids, 18, &none, NULL, &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "the question ends at token 20");
    CHECK_EQUAL(ql_session_length(s), 0);
    CHECK_EQUAL(ql_session_feed(s, ids, 12, &none, NULL, &err), QL_OK);
    CHECK_EQUAL(ql_session_set_question(s, 0, 2, &err), QL_INVALID_VALUE);
    ql_feed beyond = {.question_begin = 1, .question_end = 9};
    CHECK_EQUAL(ql_session_feed(s, ids, 8, &beyond, NULL, &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "beyond the 8 tokens");
    ql_session_free(s);

    ql_memory_config memory = memory_of(QL_QLLM);
    memory.exc_block_size = 17;
    CHECK(!ql_session_new(model, &memory, &err));
    CHECK_CONTAINS(err.text, "exc_block_size (17) must be at most n_local (16)");
    memory = memory_of(QL_QLLM);
    memory.repr_topk = 5;
    CHECK(!ql_session_new(model, &memory, &err));
    memory = memory_of(QL_QLLM);
    memory.question_weight = NAN;
    CHECK(!ql_session_new(model, &memory, &err));
    ql_model_free(model);

    ql_config config = tiny_config();
    config.num_key_value_heads = 3;
    CHECK(!ql_model_new(&config, QL_F32, 1, &err));
    CHECK_CONTAINS(err.text, "multiple of num_key_value_heads");
    config = tiny_config();
    model = ql_model_new(&config, QL_F32, 1, &err);
    CHECK(!session_in(model, QL_FULL)); /* not sealed */
    CHECK_EQUAL(ql_model_seal(model, &err), QL_MISSING_KEY);
    CHECK_CONTAINS(err.text, "model.embed_tokens.weight");
    uint64_t seed = 1;
    CHECK_EQUAL(tiny_set(model, "model.norm.weight", 25, 0, 0, 1, &seed, &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "must have the shape [24]");
    CHECK_EQUAL(tiny_set(model, "model.layers.3.input_layernorm.weight", 24, 0, 0, 1, &seed, &err),
                QL_MISSING_KEY);
    CHECK_EQUAL(tiny_set(model, "model.layers.0.self_attn.q_proj.bias", 40, 0, 0, 1, &seed, &err),
                QL_MISSING_KEY);
    CHECK_EQUAL(tiny_set(model, "model.norm.weight", 24, 0, 0, 1, &seed, &err), QL_OK);
    CHECK_EQUAL(tiny_set(model, "model.norm.weight", 24, 0, 0, 1, &seed, &err), QL_INVALID_VALUE);
    CHECK_CONTAINS(err.text, "came twice");
    ql_model_free(model);
}

static void nan_weights_stay_in_bounds(void) {
    ql_error err = {0};
    ql_config config = tiny_config();
    config.num_hidden_layers = 1;
    config.tie_word_embeddings = false;
    ql_model *model = ql_model_new(&config, QL_F32, 2, &err);
    uint64_t seed = 3;
    CHECK_EQUAL(tiny_set(model, "model.embed_tokens.weight", VOCAB, 24, 0, 1, &seed, &err), QL_OK);
    CHECK_EQUAL(tiny_set(model, "lm_head.weight", VOCAB, 24, 0, 1, &seed, &err), QL_OK);
    CHECK_EQUAL(tiny_set(model, "model.norm.weight", 24, 0, 1, 0, &seed, &err), QL_OK);
    const char *layer = "model.layers.0.";
    const struct {
        const char *name;
        int rows, columns;
    } tensors[] = {{"input_layernorm.weight", 24, 0},   {"post_attention_layernorm.weight", 24, 0},
                   {"self_attn.q_proj.weight", 40, 24}, {"self_attn.k_proj.weight", 20, 24},
                   {"self_attn.v_proj.weight", 20, 24}, {"self_attn.o_proj.weight", 24, 40},
                   {"mlp.gate_proj.weight", 40, 24},    {"mlp.up_proj.weight", 40, 24},
                   {"mlp.down_proj.weight", 24, 40}};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        char name[80];
        snprintf(name, sizeof name, "%s%s", layer, tensors[i].name);
        float center = i == 3 ? NAN : 0; /* keys */
        CHECK_EQUAL(
            tiny_set(model, name, tensors[i].rows, tensors[i].columns, center, 0.3f, &seed, &err),
            QL_OK);
    }
    CHECK_EQUAL(ql_model_seal(model, &err), QL_OK);
    static float logits[N * VOCAB];
    ql_session *s = session_in(model, QL_QLLM);
    feed(s, 0, N, logits);
    for (int64_t i = 0; i < ql_session_trace_count(s); i++) {
        const ql_trace_record *record = ql_session_trace(s, i);
        for (int j = 0; j < record->n_chosen; j++)
            CHECK(record->block_ids[j] >= (j ? record->block_ids[j - 1] + 1 : 0) &&
                  record->block_ids[j] < record->n_blocks);
    }
    ql_session_free(s);
    ql_model_free(model);
}

static void borrowed_weights_are_not_copied(void) {
    ql_error err = {0};
    ql_config config = tiny_config();
    ql_model *model = ql_model_new(&config, QL_F32, 1, &err);
    _Alignas(64) static float norm[25];
    int64_t shape[] = {24};
    bool borrowed = false;
    CHECK_EQUAL(
        ql_model_set(model, "model.norm.weight", norm, QL_F32, shape, 1, true, &borrowed, &err),
        QL_OK);
    CHECK(borrowed);
    CHECK_EQUAL(ql_model_set(model, "model.layers.0.input_layernorm.weight", (char *)norm + 1,
                             QL_F32, shape, 1, true, &borrowed, &err),
                QL_OK);
    CHECK(!borrowed); /* not aligned */
    _Alignas(64) static float head[VOCAB * 24];
    int64_t shape_of_head[] = {VOCAB, 24};
    CHECK_EQUAL(ql_model_set(model, "lm_head.weight", head, QL_F32, shape_of_head, 2, true,
                             &borrowed, &err),
                QL_OK);
    CHECK(!borrowed); /* the head is tied: this one is not used */
    ql_model_free(model);
}

int main(void) {
    uint64_t seed = 11;
    for (int i = 0; i < N; i++) ids[i] = (int32_t)((tiny_random(&seed) + 1) / 2 * VOCAB);
    RUN(threads_and_splits_change_no_bit);
    RUN(forks_go_on_by_themselves);
    RUN(an_interrupted_chunk_never_was);
    RUN(an_interrupted_look_up_never_was);
    RUN(reset_is_a_new_session);
    RUN(the_question_and_the_lookup_matter);
    RUN(a_model_serves_many_threads);
    RUN(a_busy_session_says_so);
    RUN(an_unread_question_replaces_nothing);
    RUN(refusals_are_sentences);
    RUN(nan_weights_stay_in_bounds);
    RUN(borrowed_weights_are_not_copied);
    return check_report("test_core");
}
