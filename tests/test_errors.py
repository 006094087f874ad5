from __future__ import annotations

import pickle

import pytest

from segformer_spark.errors import ConfigError, UserError


@pytest.mark.parametrize("kind", [UserError, ConfigError])
def test_an_error_keeps_its_parts_on_the_way_between_processes(kind: type[UserError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a.yaml:3: no such key", "Write lr", shared=True)))
    assert type(error) is kind
    assert (error.problem, error.fix, error.shared) == ("a.yaml:3: no such key", "Write lr", True)
    assert str(error) == "a.yaml:3: no such key. Write lr"


def test_without_a_fix_the_problem_is_the_message() -> None:
    assert str(UserError("x. y.")) == "x. y."
