"""The executable specification equals the authors' published code."""

from __future__ import annotations

import pytest
from oracle_cases import (
    RANDOM_WEIGHT_CASES,
    check_logits,
    check_lookups,
    check_vectors,
    load_case,
    replay,
)
from reference import Reference

LOGITS = 5e-5  # absolute; logits are of the order of 5
RELATIVE = 1e-5  # of the largest component, for scores and vectors


@pytest.mark.parametrize("name", RANDOM_WEIGHT_CASES)
def test_equals_the_authors_code(name: str) -> None:
    case = load_case(name)
    session = Reference(case.config, case.weights()).session(case.memory, case.query_span)
    answer = replay(session, case)
    check_logits(answer, case, LOGITS)
    check_lookups(session, case, RELATIVE)
    check_vectors(session, case, RELATIVE)
