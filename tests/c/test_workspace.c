/* Memory for activations: it is kept for the next call, but not what a very long text took. */
#include "check.h"
#include "ql_internal.h"
#include "tiny.h"

static ql_model *model;

/* A workspace of so many bytes, as a call leaves it. */
static ql_workspace *of_bytes(size_t attention_bytes) {
    ql_error err = {0};
    ql_workspace *workspace = ql_workspace_take(model, &err);
    CHECK(workspace);
    CHECK_EQUAL(ql_workspace_layout(workspace, model, 3, attention_bytes, &err), QL_OK);
    CHECK(workspace->bytes >= attention_bytes);
    return workspace;
}

static void usual_ones_are_kept(void) {
    ql_workspace *one = of_bytes(1 << 20), *other = of_bytes(2 << 20);
    CHECK(one != other);
    ql_workspace_give(model, one);
    ql_workspace_give(model, other);
    CHECK(of_bytes(1 << 20) == other);
    ql_workspace_give(model, other);
}

static void very_large_ones_are_given_back(void) {
    ql_workspace *kept = model->idle;
    CHECK(kept);
    ql_workspace *large = of_bytes((size_t)300 << 20);
    ql_workspace *others = model->idle;
    CHECK(large == kept && others != large);
    ql_workspace_give(model, large);
    CHECK(model->idle == others);
}

int main(void) {
    ql_error err = {0};
    ql_config config = tiny_config();
    model = tiny_model(&config, QL_F32, 2, &err);
    RUN(usual_ones_are_kept);
    RUN(very_large_ones_are_given_back);
    ql_model_free(model);
    return check_report("test_workspace");
}
