from __future__ import annotations

import logging
import time
from typing import Any

import torch

from segformer_spark.distributed.process_group import Group
from segformer_spark.run.console import logger
from segformer_spark.training.slow_ranks import OwnTimes, slow_ranks
from tests.ranks import run_on_ranks
from tests.tiny import tiny_segformer


def test_a_rank_far_above_the_median_is_slow_and_says_for_what() -> None:
    assert slow_ranks([(0.01, 0.2), (0.01, 0.21), (0.01, 0.5)]) == {
        2: "it encodes for 500 ms in a step, half of the ranks for 210 ms or less"
    }
    assert slow_ranks([(0.3, 0.1), (0.01, 0.1)])[0].startswith("it loads for 300 ms")


def test_alike_ranks_and_milliseconds_are_not_slow() -> None:
    assert slow_ranks([(0.01, 0.2), (0.015, 0.29)]) == {}
    assert slow_ranks([(0.001, 0.002), (0.015, 0.02)]) == {}, "less than 20 ms apart"


def _train_slowly(group: Group) -> list[str]:
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger.addHandler(Keep())
    model = tiny_segformer(("a", "b"), seed=0).train()
    times = OwnTimes(model, group, every=2)
    slow: Any = model.taps["stage2"]
    if group.rank == 1:
        slow.register_forward_hook(lambda *_: time.sleep(0.4))
    for step in range(1, 5):
        times.loaded(0.0)
        model(torch.zeros(1, 3, 64, 64))
        times.compare(step)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 64, 64))
    assert times._encoding == 0.0, "validation does not count"
    return said


def test_the_slow_one_of_three_ranks_is_named_once() -> None:
    said = run_on_ranks(3, _train_slowly)
    assert len(said[0]) == 1
    assert said[0][0].startswith("rank 1 on ")
    assert "is slow: it encodes for 4" in said[0][0]
    assert said[1] == said[2] == []
