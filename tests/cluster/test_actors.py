"""Rank 0's side of the teacher's actor, with an actor that is played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from raytrain.cluster import actors
from raytrain.cluster.actors import ActorMaker
from raytrain.teacher import GraphFailed, LocalMaker, Teacher, make_graph
from tests.test_teacher import equal, request, weights


class Call:
    """A call that answers when it is told to."""

    def __init__(self, answer: Callable[[], Any], *, done: bool):
        self.answer, self.done = answer, done


class Remote:
    def __init__(self, function: Callable[..., Any], owner: Played):
        self._function, self._owner = function, owner

    def options(self, **unused: Any) -> Remote:
        return self

    def remote(self, *arguments: Any) -> Call:
        self._owner.calls += 1
        if self._owner.raises is not None:
            error = self._owner.raises

            def fail() -> Any:
                raise error

            return Call(fail, done=True)
        return Call(lambda: self._function(*arguments), done=self._owner.quick)


class Played:
    """Stands for the handle of an actor."""

    def __init__(self) -> None:
        self.teacher, self.raises, self.quick, self.calls = Teacher(), None, True, 0
        self.raises: Exception | None
        self.refresh = Remote(lambda asked: self.teacher.refresh(asked), self)
        self.publish = Remote(lambda step, own: self.teacher.publish(step, own), self)


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Played:
    def get(call: Call, timeout: float | None = None) -> Any:
        return call.answer()

    def wait(calls: list[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        return [call for call in calls if call.done], [call for call in calls if not call.done]

    monkeypatch.setattr(actors.ray, "get", get)
    monkeypatch.setattr(actors.ray, "wait", wait)
    return Played()


def maker_of(actor: Played, local: LocalMaker | None = None) -> ActorMaker:
    return ActorMaker(actor, lambda: local or LocalMaker())


def test_a_graph_comes_from_the_actor_and_can_be_written_to(actor: Played) -> None:
    maker = maker_of(actor)
    maker.submit(request())
    assert maker.state()["queue"] == 1
    graph = maker.result(40)
    assert equal(graph, make_graph(request())) and actor.teacher.history() == [40]
    assert graph.effects.flags.writeable and maker.state()["queue"] == 0


def test_an_actor_that_is_gone_costs_time_and_no_bit(actor: Played, caplog: pytest.LogCaptureFixture) -> None:
    maker = maker_of(actor)
    actor.raises = ActorDiedError()
    maker.submit(request())
    assert equal(maker.result(40), make_graph(request()))
    assert "rank 0 makes the graph of step 40" in caplog.text


def test_a_request_that_fails_on_the_actor_is_a_failure(actor: Played) -> None:
    maker = maker_of(actor)
    actor.raises = RayTaskError("refresh", "a long traceback", ValueError("the moments hold 0 clips"))
    maker.submit(request())
    with pytest.raises(GraphFailed, match="hold 0 clips"):
        maker.result(40)


def test_a_graph_that_does_not_come_is_a_failure(actor: Played) -> None:
    maker = maker_of(actor)
    actor.raises = GetTimeoutError()
    maker.submit(request())
    with pytest.raises(GraphFailed, match="480 s after it was needed"):
        maker.result(40)


def test_weights_are_skipped_while_the_last_are_not_taken(actor: Played) -> None:
    """At most one call is on its way; the last weights of a run are waited for."""
    maker = maker_of(actor)
    actor.quick = False
    made = []

    def own(step: int) -> Callable[[], dict[str, Any]]:
        return lambda: made.append(step) or weights(float(step))  # type: ignore[func-returns-value]

    for step in (10, 20, 30):
        maker.publish(step, own(step), last=False)
    assert actor.calls == 1 and made == [10], "what is skipped is not even copied"
    assert maker.state() == {"queue": 1.0, "skipped": 2.0}
    maker.publish(31, own(31), last=True)
    assert actor.teacher.version == 31 and made == [10, 31]
    assert maker.state()["version"] == 31 and maker.state()["queue"] == 0


def test_the_last_weights_are_kept_without_the_actor(actor: Played) -> None:
    teacher = Teacher()
    maker = maker_of(actor, LocalMaker(teacher))
    actor.raises = ActorDiedError()
    maker.publish(10, lambda: weights(1.0), last=False)
    assert teacher.version is None
    maker.publish(20, lambda: weights(2.0), last=True)
    assert teacher.version == 20
    assert torch.equal(teacher.newest()[0]["head"], weights(2.0)["head"])
