"""What cannot be used is refused in a sentence, by an exception of the right class, and leaves
everything as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from tiny_core import CONFIG, MEMORY, core_config, core_model, core_session, ids, tensors
from tiny_models import random_weights

import quickllama as ql
from quickllama import _core

MODEL = core_model()
WEIGHTS = random_weights(CONFIG, 0)
UP = "model.layers.0.mlp.up_proj.weight"  # [48, 32]


def refused(kind: type[ql.Error], words: str, call: Callable[[], object]) -> None:
    """The call raises `kind`, a quickllama.Error that is also the built-in, with those words."""
    with pytest.raises(kind, match=words) as caught:
        call()
    text = str(caught.value)
    assert type(caught.value) is kind
    assert 15 < len(text) < 600 and not text.endswith("\n")


class Odd:
    """No int, no array, no buffer."""


class Broken:
    """An int whose conversion fails."""

    def __index__(self) -> int:
        raise ZeroDivisionError("in __index__")


# ---- token ids ----

BAD_IDS: list[tuple[Any, type[ql.Error], str]] = [
    ([], ql.InvalidValue, "ids is empty"),
    ((), ql.InvalidValue, "ids is empty"),
    ([[]], ql.InvalidValue, "ids is empty"),
    (np.zeros(0, int), ql.InvalidValue, "ids is empty"),
    (np.zeros((1, 0), int), ql.InvalidValue, "ids is empty"),
    ([1, 2, 96], ql.InvalidValue, "token id 96 at position 2 .* 0 to 95"),
    ([1, -1], ql.InvalidValue, "token id -1 at position 1 .* 0 to 95"),
    ([2**31], ql.InvalidValue, "token id 2147483648 at position 0"),
    ([5, 2**32 + 5], ql.InvalidValue, "token id 4294967301 at position 1"),
    ([5, 10**30], ql.InvalidValue, "token id 1000000000000000000000000000000 at position 1"),
    ([5, -(10**30)], ql.InvalidValue, "token id -1000000000000000000000000000000 at"),
    (np.array([1, 96], "u1"), ql.InvalidValue, "token id 96 at position 1"),
    (np.array([1, -7], ">i2"), ql.InvalidValue, "token id -7 at position 1"),
    (np.array([[2**40, 1]]), ql.InvalidValue, "token id 1099511627776 at position 0"),
    (np.array([3, 2**63], "u8"), ql.InvalidValue, "token id 9223372036854775808 at position 1"),
    (np.array([3, 2**64 - 1], ">u8"), ql.InvalidValue, "18446744073709551615 at position 1"),
    (np.zeros((2, 3), int), ql.InvalidValue, r"shape \(2, 3\)"),
    (np.zeros((1, 2, 3), int), ql.InvalidValue, r"shape \(1, 2, 3\)"),
    (np.array(7), ql.InvalidValue, r"shape \(\)"),
    (np.zeros(3), ql.InvalidType, "float64"),
    (np.zeros(3, bool), ql.InvalidType, "bool"),
    (np.zeros(3, complex), ql.InvalidType, "complex128"),
    (np.array([1, 2], object), ql.InvalidType, "object"),
    (np.array(["1"]), ql.InvalidType, "<U1"),
    (np.zeros(3, "m8[s]"), ql.InvalidType, "timedelta64"),
    ([1.0], ql.InvalidType, r"ids\[0\] must be an int, not float"),
    ([1, True], ql.InvalidType, r"ids\[1\] must be an int, not bool"),
    ([1, np.True_], ql.InvalidType, r"ids\[1\] must be an int, not bool"),
    ([1, None], ql.InvalidType, r"ids\[1\] must be an int, not NoneType"),
    ([1, "2"], ql.InvalidType, r"ids\[1\] must be an int, not str"),
    ([[1, 2], [3, 4]], ql.InvalidType, r"ids\[0\] must be an int, not list"),
    ([[[1]]], ql.InvalidType, r"ids\[0\] must be an int, not list"),
    ("1 2 3", ql.InvalidType, "not str; encode the text"),
    (b"123", ql.InvalidType, "not bytes"),
    (bytearray(b"123"), ql.InvalidType, "not bytearray"),
    (5, ql.InvalidType, "list of int, not int"),
    (None, ql.InvalidType, "not NoneType"),
    ({1: 2}, ql.InvalidType, "not dict"),
    ({1, 2}, ql.InvalidType, "not set"),
    (Odd(), ql.InvalidType, "not Odd"),
    (iter([1]), ql.InvalidType, "not list_iterator"),
]


@pytest.mark.parametrize(("given", "kind", "words"), BAD_IDS, ids=lambda value: repr(value)[:40])
def test_ids(given: Any, kind: type[ql.Error], words: str) -> None:
    session = core_session(MODEL)
    session.feed(ids(20))
    refused(kind, words, lambda: session.feed(given))
    refused(kind, words, lambda: MODEL.forward(given))
    assert len(session) == 20  # nothing was read, not even the good ids before a bad one


def test_numbers_that_python_does_not_print() -> None:
    huge, words = 10**5000, "a number of thousands of digits"
    refused(ql.InvalidValue, f"token id {words} at position 1", lambda: MODEL.forward([1, huge]))
    refused(ql.InvalidValue, f"logits_to_keep is {words}", lambda: MODEL.forward([1], -huge))


def test_an_exception_in_an_id_passes() -> None:
    with pytest.raises(ZeroDivisionError, match="in __index__"):
        core_session(MODEL).feed([1, Broken()])


def test_too_many_tokens_for_forward() -> None:
    many = np.zeros(131_073, np.int32)
    refused(ql.InvalidValue, "131073 tokens.*at most 131072.*session", lambda: MODEL.forward(many))


@pytest.mark.parametrize(
    ("keep", "kind", "words"),
    [
        (6, ql.InvalidValue, "logits_to_keep is 6; expected 0 .* to 5"),
        (-1, ql.InvalidValue, "logits_to_keep is -1"),
        (2**70, ql.InvalidValue, "logits_to_keep is 1180591620717411303424"),
        (1.0, ql.InvalidType, "logits_to_keep must be an int, not float"),
        (True, ql.InvalidType, "not bool"),
        (None, ql.InvalidType, "not NoneType"),
    ],
)
def test_logits_to_keep(keep: Any, kind: type[ql.Error], words: str) -> None:
    refused(kind, words, lambda: MODEL.forward([1, 2, 3, 4, 5], keep))


# ---- sessions ----


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"exc_block_size": 33}, ql.InvalidValue, r"exc_block_size \(33\).*n_local \(32\)"),
        ({"exc_block_size": 0}, ql.InvalidValue, "exc_block_size"),
        ({"lookup_interval": -1}, ql.InvalidValue, "lookup_interval"),
        ({"lookup_interval": 2.0}, ql.InvalidType, "lookup_interval"),
        ({"n_local": 0}, ql.InvalidValue, "n_local"),
        ({"n_local": 2**31 - 1}, ql.InvalidValue, "n_local"),
        ({"n_local": 2**31}, ql.InvalidValue, "n_local is 2147483648"),
        ({"n_init": -1}, ql.InvalidValue, "n_init"),
        ({"block_size": 0}, ql.InvalidValue, "block_size"),
        ({"topk": -1}, ql.InvalidValue, "topk"),
        ({"topk": 2**31 - 1}, ql.InvalidValue, "topk"),
        ({"repr_topk": 0}, ql.InvalidValue, "repr_topk"),
        ({"repr_topk": 9}, ql.InvalidValue, r"repr_topk \(9\).*block_size \(8\)"),
        ({"question_weight": float("nan")}, ql.InvalidValue, "question_weight"),
        ({"question_weight": float("inf")}, ql.InvalidValue, "question_weight"),
        ({"question_weight": -1}, ql.InvalidValue, "question_weight"),
        ({"question_weight": 1e300}, ql.InvalidValue, "question_weight"),
        ({"question_weight": 10**400}, ql.InvalidValue, "question_weight is too large"),
        ({"question_weight": "1"}, ql.InvalidType, "question_weight must be a number, not str"),
        ({"question_weight": True}, ql.InvalidType, "question_weight must be a number, not bool"),
        ({"keep_query_tokens": 1}, ql.InvalidType, "keep_query_tokens must be True or"),
        ({"mode": "quick"}, ql.InvalidValue, "mode is 'quick'; expected one of 'full', 'stream'"),
        ({"mode": 4}, ql.InvalidType, "mode must be a str, not int"),
        ({"mask": "none"}, ql.InvalidValue, "mask is 'none'; expected one of 'exact', 'authors'"),
        ({"kv_dtype": "float16"}, ql.InvalidValue, "kv_dtype is 'float16'; expected one of"),
        ({"kv_dtype": "q4"}, ql.InvalidValue, "one of 'float32', 'bfloat16', 'int8'"),
        ({"kv_dtype": None}, ql.InvalidType, "kv_dtype must be a str, not NoneType"),
        ({"trace": 1}, ql.InvalidType, "trace must be True, False or 'choices', not int"),
        ({"trace": "all"}, ql.InvalidValue, "trace is 'all'; expected True, False or 'choices'"),
        ({"n_init": 1.0}, ql.InvalidType, "n_init must be an int, not float"),
        ({"query_span": (5, 5)}, ql.InvalidValue, r"query_span is \(5, 5\); expected 0 <= start"),
        ({"query_span": (-1, 5)}, ql.InvalidValue, r"query_span is \(-1, 5\)"),
        ({"query_span": (0, 2**63)}, ql.InvalidValue, "query_span's end is 9223372036854775808"),
        ({"query_span": (0, 2**62)}, ql.InvalidValue, "question"),
        ({"query_span": (0, 33)}, ql.InvalidValue, "question"),
        ({"query_span": (0, 1.0)}, ql.InvalidType, "query_span's end must be an int, not float"),
        ({"query_span": (1, 2, 3)}, ql.InvalidType, r"it is \(1, 2, 3\)"),
        ({"query_span": 3}, ql.InvalidType, r"query_span must be \(start, end\)"),
        ({"query_span": (1, 5), "mode": "infllm"}, ql.InvalidValue, "question"),
    ],
    ids=str,
)
def test_memory_settings(changes: dict[str, Any], kind: type[ql.Error], words: str) -> None:
    refused(kind, words, lambda: core_session(MODEL, **changes))


@pytest.mark.parametrize("name", MEMORY)
def test_memory_settings_are_all_needed(name: str) -> None:
    given = {key: value for key, value in MEMORY.items() if key != name}
    refused(
        ql.InvalidType,
        f"needs the keyword argument '{name}'",
        lambda: _core.Session(MODEL, **given),
    )


def test_a_session_needs_a_model() -> None:
    for thing in (None, "smollm2", core_session(MODEL), _core.Model):
        refused(ql.InvalidType, "model must be a Model", lambda t=thing: core_session(t))
    with pytest.raises(TypeError):
        _core.Session()
    with pytest.raises(TypeError):
        core_session(MODEL, n_blocks=3)
    with pytest.raises(TypeError):

        class Subclass(_core.Session):  # sessions are final
            pass


@pytest.mark.parametrize(
    ("span", "kind", "words"),
    [
        ((0, 9), ql.InvalidValue, r"span \[0, 9\) goes beyond the 8 tokens"),
        ((8, 9), ql.InvalidValue, "beyond the 8 tokens of this call"),
        ((3, 3), ql.InvalidValue, "0 <= start < end"),
        ((5, 3), ql.InvalidValue, "0 <= start < end"),
        ((-2, 3), ql.InvalidValue, "0 <= start < end"),
        ((0, 2**70), ql.InvalidValue, "query_span's end is 1180591620717411303424"),
        ((0.0, 3), ql.InvalidType, "query_span's start must be an int"),
        ("03", ql.InvalidType, "query_span must be"),
        (np.array([0, 3]), ql.InvalidType, "query_span must be"),
    ],
    ids=str,
)
def test_query_span_of_a_call(span: Any, kind: type[ql.Error], words: str) -> None:
    session = core_session(MODEL)
    refused(kind, words, lambda: session.feed(ids(8), query_span=span))
    assert len(session) == 0


def test_a_question_longer_than_the_window() -> None:
    session = core_session(MODEL)
    refused(ql.InvalidValue, "question", lambda: session.feed(ids(80), query_span=(0, 40)))
    assert len(session) == 0


def test_a_question_that_would_be_missed() -> None:
    """The call would end with more than n_local waiting tokens and the question unfinished."""
    session = core_session(MODEL, query_span=(38, 60))
    session.feed(ids(16))
    refused(ql.InvalidValue, "question", lambda: session.feed(ids(40)))
    assert len(session) == 16


def test_a_question_in_a_mode_without_one() -> None:
    for mode in ("full", "stream", "infinite", "infllm"):
        session = core_session(MODEL, mode=mode)
        refused(ql.InvalidValue, "question", lambda s=session: s.feed([1, 2, 3], query_span=(0, 2)))


def test_layers_that_do_not_exist() -> None:
    session = core_session(MODEL, query_span=(0, 5))
    session.feed(ids(60))
    for get in (session.block_vectors, session.question_vector):
        for layer in (-1, 2, 2**31 - 1):
            refused(ql.InvalidValue, "layer", lambda g=get, i=layer: g(i))
        refused(ql.InvalidValue, "layer is", lambda g=get: g(2**40))
        for odd in (0.0, None, "0", True):
            refused(ql.InvalidType, "layer must be an int", lambda g=get, o=odd: g(o))


def test_no_question_vector_yet() -> None:
    session = core_session(MODEL, query_span=(0, 5))
    session.feed(ids(10))
    refused(ql.InvalidValue, "question", lambda: session.question_vector(0))


def test_all_logits_is_a_flag() -> None:
    for odd in (1, None, "yes", np.True_):
        refused(
            ql.InvalidType,
            "all_logits must be True or False",
            lambda o=odd: core_session(MODEL).feed([1], all_logits=o),
        )


# ---- models ----


def build(changes: Mapping[str, Any] | None = None, **options: Any) -> _core.Model:
    """A model of WEIGHTS with tensors changed, (data, dtype, shape) by name; None: left out."""
    given = {name: (array, dtype, shape) for name, array, dtype, shape in tensors(WEIGHTS)}
    given.update(changes or {})
    config = {**core_config(), **options.pop("config", {})}
    return _core.Model(
        config,
        [(name, *value) for name, value in given.items() if value is not None],
        options.pop("dtype", "float32"),
        options.pop("n_threads", 1),
    )


ARRAY = WEIGHTS[UP]
SHAPE = (48, 32)
BAD_TENSORS: list[tuple[Any, type[ql.Error], str]] = [
    ((ARRAY.T.copy().T, "float32", SHAPE), ql.InvalidValue, "not C-contiguous"),
    ((np.repeat(ARRAY, 2, 1)[:, ::2], "float32", SHAPE), ql.InvalidValue, "not C-contiguous"),
    ((ARRAY.astype(">f4"), "float32", SHAPE), ql.InvalidValue, "other byte order"),
    ((ARRAY.astype(">f2"), "float16", SHAPE), ql.InvalidValue, "other byte order"),
    ((ARRAY.astype("f8"), "float32", SHAPE), ql.InvalidType, "float64.*float32"),
    ((ARRAY.astype("i4"), "float32", SHAPE), ql.InvalidType, "int32.*float32"),
    ((ARRAY.astype("f2"), "float32", SHAPE), ql.InvalidType, "float16.*float32"),
    ((ARRAY.astype("f2"), "bfloat16", SHAPE), ql.InvalidType, "float16.*uint16"),
    ((ARRAY, "q8_0", SHAPE), ql.InvalidType, "float32.*raw bytes"),
    ((ARRAY.astype(object), "float32", SHAPE), ql.InvalidType, "object.*float32"),
    ((ARRAY.tolist(), "float32", SHAPE), ql.InvalidType, "ndarray or a buffer"),
    ((None, "float32", SHAPE), ql.InvalidType, "ndarray or a buffer"),
    ((ARRAY, "float8", SHAPE), ql.InvalidValue, "'float8'; expected one of 'float32'"),
    ((ARRAY, None, SHAPE), ql.InvalidType, "dtype of .*up_proj.* must be a str"),
    ((ARRAY, "float32", (32, 48)), ql.InvalidValue, "32.*48"),
    ((ARRAY, "float32", (48, 33)), ql.InvalidValue, "6144 bytes"),
    ((ARRAY[:-1], "float32", (47, 32)), ql.InvalidValue, "47"),
    ((ARRAY, "float32", (48 * 32,)), ql.InvalidValue, "1536"),
    ((ARRAY, "float32", (1, 1, 48, 32)), ql.InvalidValue, "48"),
    ((ARRAY, "float32", ()), ql.InvalidType, "1 to 4 sizes"),
    ((ARRAY, "float32", (1, 1, 1, 48, 32)), ql.InvalidType, "1 to 4 sizes"),
    ((ARRAY, "float32", [48, 32]), ql.InvalidType, "must be a tuple"),
    ((ARRAY, "float32", (48.0, 32)), ql.InvalidType, "must be an int, not float"),
    ((ARRAY, "float32", (-48, -32)), ql.InvalidValue, "at least 1"),
    ((ARRAY[:0], "float32", (0, 32)), ql.InvalidValue, "at least 1"),
    ((ARRAY, "float32", (2**32, 2**32)), ql.InvalidValue, "4294967296"),
    ((ARRAY, "float32", (2**62, 1)), ql.InvalidValue, "bytes"),
    ((b"\0" * (48 * 32 * 4 - 1), "float32", SHAPE), ql.InvalidValue, "6143 bytes"),
    ((b"\0" * (48 * 34), "q8_0", (51, 31)), ql.InvalidValue, "blocks of 32"),
    ((b"\0" * (48 * 34 + 1), "q8_0", SHAPE), ql.InvalidValue, "1633 bytes"),
    ((b"\0" * 84 * 6, "q2_k", SHAPE), ql.InvalidValue, "blocks of 256"),
    ((memoryview(b"\0" * 6145)[1:], "float32", SHAPE), ql.InvalidValue, "not aligned"),
    (None, ql.MissingKey, "up_proj"),
]


@pytest.mark.parametrize(("value", "kind", "words"), BAD_TENSORS, ids=lambda v: repr(v)[-30:])
def test_tensors(value: Any, kind: type[ql.Error], words: str) -> None:
    refused(kind, words, lambda: build({UP: value}))


def test_an_unaligned_array() -> None:
    raw = np.zeros(ARRAY.nbytes + 1, np.uint8)
    array = raw[1:].view("f4").reshape(SHAPE)
    refused(ql.InvalidValue, "not aligned", lambda: build({UP: (array, "float32", SHAPE)}))


def test_tensor_names() -> None:
    one = (np.zeros(4, np.float32), "float32", (4,))
    for name in ("model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", ""):
        refused(ql.MissingKey, "tensor", lambda n=name: build({n: one}))
    refused(ql.MissingKey, "é", lambda: build({"é" * 400: one}))
    refused(ql.InvalidValue, "zero byte", lambda: build({"model\0norm": one}))
    refused(ql.InvalidValue, "surrogate", lambda: build({"\ud800": one}))
    refused(ql.InvalidType, "name must be a str", lambda: build({3: one}))


def test_a_tensor_given_twice() -> None:
    twice = [*tensors(WEIGHTS), *tensors({UP: ARRAY})]
    refused(ql.InvalidValue, "twice", lambda: _core.Model(core_config(), twice, "float32", 1))


def test_what_is_no_tensor() -> None:
    for thing in (None, "ab", ("x", ARRAY, "float32"), ["x", ARRAY, "float32", SHAPE], 5):
        refused(
            ql.InvalidType,
            r"must be a tuple \(name, data, dtype, shape\)",
            lambda t=thing: _core.Model(core_config(), [t], "float32", 1),
        )
    for thing in (None, 5, Odd()):
        refused(
            ql.InvalidType,
            "tensors must be an iterable",
            lambda t=thing: _core.Model(core_config(), t, "float32", 1),
        )


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"vocab_size": 0}, ql.InvalidValue, "vocab_size"),
        ({"vocab_size": 2**40}, ql.InvalidValue, "vocab_size is 1099511627776"),
        ({"hidden_size": -32}, ql.InvalidValue, "hidden_size"),
        ({"intermediate_size": 2**31 - 1}, ql.InvalidValue, "intermediate_size"),
        ({"num_hidden_layers": 0}, ql.InvalidValue, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, ql.InvalidValue, "num_key_value_heads"),
        ({"num_key_value_heads": 0}, ql.InvalidValue, "num_key_value_heads"),
        ({"head_dim": 15}, ql.InvalidValue, "head_dim must be even"),
        ({"head_dim": 16.0}, ql.InvalidType, "head_dim must be an int, not float"),
        ({"head_dim": None}, ql.InvalidType, "head_dim must be an int, not NoneType"),
        ({"rms_norm_eps": float("nan")}, ql.InvalidValue, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, ql.InvalidType, "rms_norm_eps must be a number, not str"),
        ({"rope_theta": 0.0}, ql.InvalidValue, "rope_theta"),
        ({"rope_theta": float("inf")}, ql.InvalidValue, "rope_theta"),
        ({"rope_type": "yarn"}, ql.InvalidValue, "rope_type is 'yarn'; expected one of 'default'"),
        ({"rope_type": "linear", "rope_factor": 0.5}, ql.InvalidValue, "factor"),
        ({"rope_type": "llama3", "rope_high_freq_factor": 1.0}, ql.InvalidValue, "freq"),
        ({"sliding_window": -1}, ql.InvalidValue, "sliding_window"),
        ({"qkv_bias": 0}, ql.InvalidType, "qkv_bias must be True or False, not int"),
        ({"attention_multiplier": 2.0}, ql.MissingKey, "'attention_multiplier'"),
        ({5: 2.0}, ql.MissingKey, "key 5"),
    ],
    ids=str,
)
def test_config(changes: dict[Any, Any], kind: type[ql.Error], words: str) -> None:
    refused(kind, words, lambda: build(config=changes))


@pytest.mark.parametrize("name", core_config())
def test_config_keys_are_all_needed(name: str) -> None:
    config = {key: value for key, value in core_config().items() if key != name}
    refused(ql.MissingKey, f"lacks the key '{name}'", lambda: _core.Model(config, [], "float32", 1))


def test_config_is_a_dict() -> None:
    for thing in (None, [("vocab_size", 5)], "config"):
        refused(
            ql.InvalidType,
            "config must be a dict",
            lambda t=thing: _core.Model(t, [], "float32", 1),
        )


def test_dtype_and_threads_of_a_model() -> None:
    refused(ql.InvalidValue, "dtype is 'q4_0'; expected one of", lambda: build(dtype="q4_0"))
    refused(ql.InvalidValue, "dtype is 'int3'; expected one of", lambda: build(dtype="int3"))
    refused(ql.InvalidType, "dtype must be a str", lambda: build(dtype=np.float32))
    for count in (0, -1, 65, 2**31 - 1):
        refused(ql.InvalidValue, "n_threads.*64", lambda n=count: build(n_threads=n))
    refused(ql.InvalidType, "n_threads must be an int", lambda: build(n_threads=2.0))


# ---- functions ----


def test_decode() -> None:
    cases: list[tuple[tuple[Any, ...], type[ql.Error], str]] = [
        ((b"\0" * 7, "float32", 2), ql.InvalidValue, "7 bytes.*2 values of float32"),
        ((b"\0" * 34, "q8_0", 31), ql.InvalidValue, "blocks of 32"),
        ((b"\0" * 34, "q8_0", -32), ql.InvalidValue, "not negative"),
        ((b"\0" * 34, "q8_0", 2**62), ql.InvalidValue, "34 bytes"),
        ((b"\0" * 34, "q8_0", 2**80), ql.InvalidValue, "n is 1208925819614629174706176"),
        ((b"\0" * 34, "q9_0", 32), ql.InvalidValue, "dtype is 'q9_0'; expected one of"),
        ((b"\0" * 34, 8, 32), ql.InvalidType, "dtype must be a str"),
        ((b"\0" * 34, "q8_0", 32.0), ql.InvalidType, "n must be an int"),
        (([0] * 34, "q8_0", 32), ql.InvalidType, "ndarray or a buffer"),
        ((np.zeros(68, "u1")[::2], "q8_0", 32), ql.InvalidValue, "C-contiguous"),
    ]
    for arguments, kind, words in cases:
        refused(kind, words, lambda a=arguments: _core.decode(*a))


def test_cpu_variants() -> None:
    before = _core.cpu_variant()
    refused(ql.InvalidValue, "sse9", lambda: _core.set_cpu_variant("sse9"))
    refused(ql.InvalidValue, "zero byte", lambda: _core.set_cpu_variant("avx2\0"))
    refused(ql.InvalidType, "must be a str", lambda: _core.set_cpu_variant(2))
    assert _core.cpu_variant() == before


def test_every_exception_is_also_the_built_in_one() -> None:
    pairs = {
        ql.InvalidValue: ValueError, ql.InvalidType: TypeError, ql.MissingKey: KeyError,
        ql.Busy: RuntimeError,
    }  # fmt: skip
    for ours, built_in in pairs.items():
        assert issubclass(ours, built_in) and issubclass(ours, ql.Error)
