"""`forward` equals HuggingFace transformers on random tiny models of each family."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from make_peer_fixtures import FAMILIES, PEERS, TINY, transformers_answer
from numpy.typing import NDArray
from oracle_cases import arrays
from reference import Reference

import quickllama as ql

TOLERANCE = 2e-5  # absolute, in float32


@dataclass(frozen=True)
class Peer:
    """One file of fixtures/peers."""

    config: dict[str, Any]
    saved_config: dict[str, Any]
    weights: dict[str, NDArray[np.float32]]
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]


def load_peer(name: str) -> Peer:
    stored = arrays(PEERS / f"{name}.npz")
    config, saved = (json.loads(str(stored.pop(key))) for key in ("config", "saved_config"))
    ids, logits = stored.pop("ids"), stored.pop("logits")
    weights = {name: array.astype(np.float32) for name, array in stored.items()}
    return Peer(config, saved, weights, ids, logits)


def check(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_equals_stored_logits(name: str) -> None:
    peer = load_peer(name)
    assert peer.config == {**TINY, **FAMILIES[name]}
    check(ql.Model(peer.config, peer.weights, dtype="float32").forward(peer.ids), peer.logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_config_as_transformers_saves_it(name: str) -> None:
    """The other dialect of config.json (rope_parameters) means the same."""
    peer = load_peer(name)
    check(ql.Model(peer.saved_config, peer.weights, dtype="float32").forward(peer.ids), peer.logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_specification_equals_stored_logits(name: str) -> None:
    peer = load_peer(name)
    check(Reference(peer.config, peer.weights).forward(peer.ids), peer.logits)
    check(Reference(peer.saved_config, peer.weights).forward(peer.ids), peer.logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_setting_matters(name: str) -> None:
    """Each family's own settings change the logits: the comparisons above would notice."""
    peer = load_peer(name)
    for key in FAMILIES[name].keys() & {"rope_scaling", "sliding_window", "rope_theta"}:
        without = {k: v for k, v in peer.config.items() if k != key}
        logits = Reference(without, peer.weights).forward(peer.ids)
        assert np.abs(logits - peer.logits).max() > 100 * TOLERANCE, key


@pytest.mark.peers
@pytest.mark.parametrize("name", FAMILIES)
def test_forward_equals_transformers(name: str) -> None:
    """The stored logits are what transformers answers today."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    peer = load_peer(name)
    _, logits = transformers_answer(peer.config, peer.weights, peer.ids)
    check(logits, peer.logits)
    check(ql.Model(peer.config, peer.weights, dtype="float32").forward(peer.ids), logits)
