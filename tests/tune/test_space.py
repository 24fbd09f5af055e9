from __future__ import annotations

from typing import Any

import optuna
import pytest

from raytrain.config import build, override
from raytrain.methods import METHODS, settings_of
from tune.space import SPACES, Choice, Real, Whole, ranges_of, suggest


def test_every_method_has_a_space() -> None:
    assert SPACES.keys() == METHODS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_every_point_of_a_space_is_a_configuration(method: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen: set[str] = set()
    for _ in range(150):
        values = suggest(study.ask(), SPACES[method], {})
        nested: dict[str, Any] = {"method": {"name": method}}
        for key, value in values.items():
            override(nested, key.split("."), value)
        config = build(**nested)
        settings = settings_of(config)
        for key, value in values.items():
            assert _at(config, settings, key) == value
        seen |= values.keys()
    assert seen == {key for key, _ in ranges_of(SPACES[method])}, "every range is reached"


def _at(config: Any, settings: Any, key: str) -> Any:
    section, _, rest = key.partition(".")
    found = settings if section == "method" else getattr(config, section)
    for part in rest.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


class First:
    """Answers the lowest value, and the word that it was told."""

    def __init__(self, word: str):
        self.word, self.asked = word, list[str]()

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked.append(name)
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.asked.append(name)
        return low

    def suggest_categorical(self, name: str, choices: tuple[str, ...]) -> str:
        self.asked.append(name)
        assert self.word in choices
        return self.word


SMALL = {
    "a": Real(0.5, 1.0),
    "b": Choice({"with": 1, "without": None}, then={"with": {"b.c": Whole(2, 3), "b.d": Real(0.1, 1.0)}}),
}


def test_a_conditional_range_exists_only_where_its_choice_is_made() -> None:
    assert suggest(First("with"), SMALL, {}) == {"a": 0.5, "b": 1, "b.c": 2, "b.d": 0.1}
    assert suggest(First("without"), SMALL, {}) == {"a": 0.5, "b": None}


def test_what_the_user_has_set_is_not_searched() -> None:
    asked = First("with")
    assert suggest(asked, SMALL, {"b": 1, "b.c": 3}) == {"a": 0.5, "b.d": 0.1}
    assert asked.asked == ["a", "b.d"]
    assert suggest(asked, SMALL, {"b": None}) == {"a": 0.5}
    assert suggest(asked, SMALL, {"b": "a value that is no option"}) == {"a": 0.5}
