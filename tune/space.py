"""What is searched, as data: ranges of configuration keys by method.

A range belongs to one key of the configuration, in dotted form.  A choice can bring further ranges along, which exist
where it is made and nowhere else (define by run).  A key that the user has set is not searched; a choice that the
user has made brings its own ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Real:
    """A real number; `log`: uniform in its logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Whole:
    """A whole number, both ends included."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of a few values, by the word that tables and figures call it."""

    options: Mapping[str, Any]
    then: Mapping[str, Space] = field(default_factory=dict)
    """Ranges that exist only where the option of that word is chosen."""


Range = Real | Whole | Choice
Space = Mapping[str, Range]


def words(*values: str) -> dict[str, str]:
    """Options that are called by their values."""
    return {value: value for value in values}


def in_section(name: str, space: Space) -> Space:
    """The same ranges, of keys of [method.name] in place of [method]."""
    return {
        key.replace("method.", f"method.{name}.", 1): (
            Choice(of.options, {word: in_section(name, then) for word, then in of.then.items()})
            if isinstance(of, Choice)
            else of
        )
        for key, of in space.items()
    }


MARGIN, WEIGHT, SHARE = Real(0.05, 0.8), Real(0.01, 3.0, log=True), Real(0.0, 1.0)
TEMPERATURE, SCALE = Real(0.02, 0.5, log=True), Real(4.0, 64.0, log=True)
NEGATIVES = Choice(words("leave", "weigh", "stay"))
SIZES = Choice({str(size): size for size in (32, 64, 128, 256)})

TOWERS: Space = {
    "model.hidden": Choice({"256": (256,), "512": (512,), "256 256": (256, 256), "1024 1024": (1024, 1024)}),
    "model.embedding": SIZES,
    "model.dropout": Real(0.0, 0.5),
    "model.input_dropout": Real(0.0, 0.6),
}
OPTIMISER: Space = {
    "optim.lr": Real(1e-4, 1e-2, log=True),
    "optim.weight_decay": Real(1e-5, 1e-1, log=True),
}

LOSSES_OF_METRIC: Mapping[str, Space] = {
    "triplet": {
        "method.triplet.margin": MARGIN,
        "method.triplet.mining": Choice(words("all", "semi-hard", "hard")),
    },
    "contrastive": {
        "method.contrastive.positive_margin": Real(0.0, 0.3),
        "method.contrastive.negative_margin": Real(0.2, 1.0),
    },
    "n-pair": {"method.n_pair.scale": SCALE},
    "info-nce": {"method.info_nce.temperature": TEMPERATURE},
    "arcface": {"method.arcface.margin": Real(0.0, 0.5), "method.arcface.scale": SCALE},
    "supcon": {"method.supcon.temperature": TEMPERATURE},
    "center-contrastive": {
        "method.center_contrastive.temperature": TEMPERATURE,
        "method.center_contrastive.margin": Real(0.0, 0.4),
        "method.center_contrastive.momentum": Real(0.5, 0.99),
    },
}

DISTILLATIONS_OF_COMPOSITIONAL: Mapping[str, Space] = {
    "compositional": {
        "method.compositional.weight": Real(0.1, 5.0, log=True),
        "method.compositional.mixing": SHARE,
        "method.compositional.divergence": Real(0.0, 2.0),
    },
    "fitnet": {"method.fitnet.weight": Real(0.1, 10.0, log=True)},
    "pkt": {"method.pkt.weight": Real(10.0, 1000.0, log=True)},
    "correlation": {
        "method.correlation.weight": Real(1.0, 100.0, log=True),
        "method.correlation.gamma": Real(0.1, 1.0, log=True),
    },
    "rkd": {
        "method.rkd.distance_weight": Real(2.0, 100.0, log=True),
        "method.rkd.angle_weight": Real(5.0, 200.0, log=True),
    },
    "crd": {"method.crd.weight": Real(0.1, 5.0, log=True), "method.crd.temperature": TEMPERATURE},
    "information-flow": {
        "method.information_flow.weight": Real(10.0, 1000.0, log=True),
        "method.information_flow.decay": Real(0.3, 1.0),
    },
    "cmc": {"method.cmc.weight": Real(0.1, 10.0, log=True), "method.cmc.temperature": TEMPERATURE},
}

PSD: Space = {
    "method.metric": Choice(
        words("triplet", "info-nce", "supcon"),
        then={
            "triplet": {"method.margin": MARGIN, "method.mining": Choice(words("all", "hard"))},
            "info-nce": {"method.metric_temperature": TEMPERATURE},
            "supcon": {"method.metric_temperature": TEMPERATURE},
        },
    ),
    "method.label": Choice(words("norm", "cross-entropy")),
    "method.alignment": Choice(
        words("similarity", "classes"),
        then={
            "similarity": {"method.temperature": TEMPERATURE},
            "classes": {"method.temperature": Real(0.02, 2.0, log=True)},
        },
    ),
    "method.pair": Choice(words("aligned", "positive")),
    "method.class_share": SHARE,
    "method.teacher": Choice(words("ema", "self"), then={"ema": {"method.ema_decay": Real(0.8, 0.999)}}),
    "method.dis": Choice(
        {"decorrelation": "decorrelation", "distance": "distance", "off": None},
        then={
            word: {"method.lambda_dis": Real(0.01, 10.0, log=True)} for word in ("decorrelation", "distance")
        },
    ),
    "method.r_0": Real(0.6, 1.0),
    "method.r_schedule": Choice(
        words("cosine", "linear", "step", "constant"),
        then={
            "cosine": {"method.r_end": Real(0.2, 0.6)},
            "linear": {"method.r_end": Real(0.2, 0.6)},
            "step": {"method.r_end": Real(0.2, 0.6), "method.r_levels": Whole(2, 5)},
        },
    ),
}

SPACES: Mapping[str, Space] = {
    "metric": {
        **OPTIMISER,
        **TOWERS,
        "method.loss": Choice(words(*LOSSES_OF_METRIC), then=LOSSES_OF_METRIC),
    },
    "hsc-mae": {
        **OPTIMISER,
        **TOWERS,
        "method.mask_ratio": Real(0.0, 0.5),
        "method.warmup": Real(0.0, 0.4),
        "method.contrast": Choice(
            {"soft top-k": "soft top-k", "pair": "pair", "off": None},
            then={
                "soft top-k": {
                    "method.temperature": TEMPERATURE,
                    "method.affinity_temperature": TEMPERATURE,
                    "method.neighbours": Whole(1, 20, log=True),
                    "method.warmup_contrast": Real(0.01, 1.0, log=True),
                },
                "pair": {
                    "method.temperature": TEMPERATURE,
                    "method.warmup_contrast": Real(0.01, 1.0, log=True),
                },
            },
        ),
        "method.weights": Choice(
            words("learnt", "equal"), then={"learnt": {"method.weights_rate": Real(0.3, 30.0, log=True)}}
        ),
    },
    "psd": {
        **OPTIMISER,
        **TOWERS,
        **PSD,
    },
    "ili": {
        **OPTIMISER,
        **TOWERS,
        "method.loss": Choice(
            words("proxy-triplet", "triplet", "info-nce", "supcon", "psd"),
            then={
                **{
                    word: {
                        "method.hinge.margin": MARGIN,
                        "method.hinge.mining": Choice(words("all", "semi-hard", "hard")),
                        "method.negatives": NEGATIVES,
                    }
                    for word in ("proxy-triplet", "triplet")
                },
                **{
                    word: {"method.softmax.temperature": TEMPERATURE, "method.negatives": NEGATIVES}
                    for word in ("info-nce", "supcon")
                },
                "psd": in_section("psd", PSD),
            },
        ),
        "method.weight": WEIGHT,
        "method.threshold": Real(0.05, 0.8),
        "method.ramp": Real(0.0, 0.3),
        "method.t_teach": Real(0.15, 0.7),
        "method.teacher_hidden": Choice({"as the student": None, "512": (512,), "1024": (1024,)}),
        "method.teacher_input_dropout": Choice({"as the student": None, "0.1": 0.1, "0.2": 0.2}),
        "method.label_error": Choice(words("bce", "l2")),
        "method.annotated": Real(0.1, 1.0),
        "method.each_view": Real(0.1, 1.0, log=True),
        "method.contrast": Real(0.002, 0.2, log=True),
        "method.one_of": Real(0.001, 0.3, log=True),
        "method.reconstruction": Real(0.001, 0.3, log=True),
        "method.alignment": Real(0.01, 3.0, log=True),
        "method.alignment_temperature": Real(0.5, 4.0, log=True),
        "method.teacher_average": Real(0.9, 0.999),
        "method.top_k": Whole(1, 8, log=True),
        "method.one_view": Choice({"all clips": None, "0": 0.0, "1": 1.0, "2": 2.0}),
        "method.search.penalty": Real(0.25, 2.0, log=True),
        "method.search.min_effect": Real(0.01, 0.4, log=True),
        "method.search.told": Choice({"the effect alone": 0.0, "and the annotation": 0.4}),
    },
    "dscmr": {
        **OPTIMISER,
        **TOWERS,
        "method.label": Choice(words("norm", "cross-entropy")),
        "method.alpha": Real(1e-4, 10.0, log=True),
        "method.beta": Real(1e-3, 10.0, log=True),
        "method.common": Choice(
            words("triplet", "likelihood"),
            then={
                "triplet": {
                    "method.margin": MARGIN,
                    "method.mining": Choice(words("all", "semi-hard", "hard")),
                }
            },
        ),
    },
    "compositional": {
        **OPTIMISER,
        **TOWERS,
        "method.distillation": Choice(
            words(*DISTILLATIONS_OF_COMPOSITIONAL), then=DISTILLATIONS_OF_COMPOSITIONAL
        ),
    },
}
"""By method.  A method that is not here cannot be searched; a test asks for every one."""

TEACHER_KEYS: Mapping[str, tuple[str, ...]] = {
    "ili": (
        "model.hidden",
        "model.embedding",
        "model.input_dropout",
        "method.teacher_hidden",
        "method.teacher_input_dropout",
        "method.t_teach",
        "method.label_error",
        "method.annotated",
        "method.each_view",
        "method.contrast",
        "method.one_of",
        "method.reconstruction",
        "method.alignment",
        "method.alignment_temperature",
        "method.teacher_average",
        "method.top_k",
        "method.one_view",
        "method.search.penalty",
        "method.search.told",
        "method.search.min_effect",
    )
}
"""Of methods whose teacher does not depend on the student: the keys that the teacher and its graph depend on."""


class Asked(Protocol):
    """What draws a value: an Optuna trial, or whatever stands in for one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: tuple[str, ...]) -> Any: ...


def suggest(asked: Asked, space: Space, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Values by key of one point of the space, conditional ranges only where they exist.

    `fixed`: what the user has set, by key; it is not searched.
    """
    found: dict[str, Any] = {}
    for key, of in space.items():
        if isinstance(of, Choice):
            if key in fixed:
                word = _word_of(of, fixed[key])
            else:
                word = asked.suggest_categorical(key, tuple(of.options))
                found[key] = of.options[word]
            found |= suggest(asked, of.then.get(word, {}), fixed)
        elif key not in fixed:
            draw = asked.suggest_float if isinstance(of, Real) else asked.suggest_int
            found[key] = draw(key, of.low, of.high, log=of.log)  # type: ignore[arg-type]
    return found


def _word_of(choice: Choice, value: Any) -> str:
    same = [word for word, option in choice.options.items() if option == value]
    return same[0] if same else ""


def ranges_of(space: Space) -> Iterator[tuple[str, Range]]:
    """All keys of a space with their ranges, those of every choice included."""
    for key, of in space.items():
        yield key, of
        if isinstance(of, Choice):
            for then in of.then.values():
                yield from ranges_of(then)


def described(space: Space) -> dict[str, Any]:
    """The space as plain JSON values, to tell whether a search that goes on is the one that was begun."""
    plain: dict[str, Any] = {}
    for key, of in space.items():
        if isinstance(of, Choice):
            plain[key] = {"options": dict(of.options), "then": {w: described(s) for w, s in of.then.items()}}
        else:
            plain[key] = [of.low, of.high, "log" if of.log else "linear", type(of).__name__]
    return plain
