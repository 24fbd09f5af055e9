"""Optuna's samplers without a memory of their own: what they suggest is a function of the seed, the number of the trial
and the finished trials on disk.  So a search that was killed goes on with the suggestions it would have made."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

SamplerName = Literal["tpe", "gp", "cmaes", "random"]
SAMPLERS: Mapping[SamplerName, str] = {
    "tpe": "tree-structured Parzen estimator, multivariate, by groups of conditional parameters",
    "gp": "Gaussian process with expected improvement",
    "cmaes": "covariance matrix adaptation",
    "random": "each trial by itself",
}


def make(name: SamplerName, *, seed: int, startup: int, parallel: bool) -> BaseSampler:
    """A fresh sampler.  `startup`: trials drawn at random first; `parallel`: others run while one is suggested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=parallel
            )
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if name == "cmaes":
            return CmaEsSampler(
                seed=seed,
                n_startup_trials=startup,
                consider_pruned_trials=True,
                warn_independent_sampling=False,
            )
        return RandomSampler(seed=seed)


def _already_drawn(trial: FrozenTrial) -> dict[str, Any] | None:
    """The joint values that a sampler noted at a trial before it was killed: drawn again, the trial would count as
    one that runs beside itself."""
    parts = {key: text for key, text in trial.system_attrs.items() if ":relative_params:" in key}
    if not parts:
        return None
    joined = "".join(parts[key] for key in sorted(parts, key=lambda key: int(key.rpartition(":")[2])))
    try:
        found: dict[str, Any] = json.loads(joined)
    except json.JSONDecodeError:  # killed between two parts of it
        return None
    return found


class Memoryless(BaseSampler):
    """A fresh sampler for every question, seeded by who asks and what for."""

    def __init__(
        self, name: SamplerName, *, seed: int, startup: int, parallel: bool, common: Collection[str]
    ):
        """`common`: the parameters that every trial has; CMA-ES takes these alone: its dimension must stay."""
        self._common = common
        self._name, self._seed = name, seed
        self._startup, self._parallel = startup, parallel
        self._joint: tuple[int, BaseSampler] | None = None  # of the trial whose joint space was inferred last

    def _fresh(self, number: int, what: str) -> BaseSampler:
        text = f"{self._seed} {number} {what}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        return make(self._name, seed=seed, startup=self._startup, parallel=self._parallel)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        sampler = self._fresh(trial.number, "joint")
        self._joint = trial.number, sampler
        joint = sampler.infer_relative_search_space(study, trial)
        if self._name == "cmaes":
            return {name: of for name, of in joint.items() if name in self._common}
        return joint

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        assert self._joint is not None and self._joint[0] == trial.number
        drawn = _already_drawn(trial)
        if drawn is not None and drawn.keys() <= search_space.keys():
            return drawn
        return self._joint[1].sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._fresh(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._fresh(trial.number, "after").after_trial(study, trial, state, values)
