from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from tune.rungs import Rungs


@pytest.mark.parametrize(
    ("first", "factor", "last"), [(1, 3, 27), (1, 3, 9), (2, 4, 40), (3, 2, 20), (5, 3, 5)]
)
def test_decisions_are_those_of_ray_tune(first: int, factor: int, last: int) -> None:
    """The same results in the same order: trials interleaved at random, scores with ties, some reported late."""
    generator = np.random.default_rng(first * 100 + factor * 10 + last)
    for _ in range(20):
        theirs = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="score",
            mode="max",
            max_t=last,
            grace_period=first,
            reduction_factor=factor,
        )
        ours = Rungs(first, factor, last)
        epochs = dict.fromkeys(range(15), 0)
        for number in epochs:
            theirs.on_trial_add(None, SimpleNamespace(trial_id=str(number)))
        stopped_early = 0
        while epochs:
            number = int(generator.choice(list(epochs)))
            epochs[number] = min(last, epochs[number] + int(generator.integers(1, 4)))
            score = round(float(generator.random()), 1)  # ties
            result = {"epoch": epochs[number], "score": score}
            stop = theirs.on_trial_result(None, SimpleNamespace(trial_id=str(number)), result) == "STOP"
            assert (ours.decide(number, epochs[number], score) == "stop") is stop
            if stop:
                stopped_early += epochs.pop(number) < last
        assert stopped_early > 0 or first == last


def test_the_quantile_by_hand() -> None:
    """Factor 2: the cut is the median of the scores that came before, and equal to it goes on."""
    rungs = Rungs(1, 2, 4)
    assert rungs.decide(0, 1, 0.5) == "go on"  # the first always does
    assert rungs.decide(1, 1, 0.5) == "go on"
    assert rungs.decide(2, 1, 0.49) == "stop"
    assert rungs.decide(3, 1, 0.7) == "go on"  # of .49 .5 .5
    assert rungs.decide(4, 1, 0.4999) == "stop"
    assert rungs.decide(0, 1, 0.0) == "go on"  # asked again
    assert rungs.decide(0, 2, 0.1) == "go on"
    assert rungs.decide(1, 2, 0.05) == "stop"
    assert rungs.decide(0, 4, 0.9) == "stop"  # the end


def test_where_the_next_decision_is() -> None:
    rungs = Rungs(1, 3, 27)
    assert [rungs.after(epoch) for epoch in (0, 1, 2, 3, 9, 26)] == [1, 3, 3, 9, 27, 27]
    assert Rungs(2, 2.5, 20).after(2) == 5
    assert Rungs(2, 2.5, 20).after(5) == 13, "12.5 epochs are reached with 13"
    assert Rungs(2, 2.5, 20).after(13) == 20
