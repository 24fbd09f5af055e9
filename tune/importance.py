"""Which parameters matter: functional ANOVA, Hutter, Hoos and Leyton-Brown, ICML 2014, by Optuna.

Trials that were stopped at different rungs cannot be compared by their last scores.  So there are two questions: the
score at the first rung, which all trials reached, and the score of those that trained to their end.  Parameters that
only some trials have are asked for within each choice that brings them, where it was made often enough.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from tune.space import Choice

if TYPE_CHECKING:
    from tune.driver import Search, Trial

FEWEST = 8
"""Trials that a forest is grown on."""


def importances(search: Search) -> dict[str, dict[str, float]]:
    """Share of the variance of the score by parameter, largest first; by question."""
    scored = [trial for trial in search.trials.values() if math.isfinite(trial.score) and trial.curve]
    first = search.epochs if search.rungs is None else search.rungs.first
    early = {trial.number: max(trial.curve[:first]) for trial in scored if len(trial.curve) >= first}
    late = {trial.number: trial.score for trial in scored if trial.state == "complete"}
    questions = {f"score after {first} epoch{'s' if first > 1 else ''}": early}
    if late.keys() != early.keys():
        questions["score of trials that trained to their end"] = late
    found: dict[str, dict[str, float]] = {}
    for question, scores in questions.items():
        of = [trial for trial in scored if trial.number in scores]
        found[question] = _shares(search, of, scores)
        for key, range_ in search.space.items():
            if isinstance(range_, Choice) and key not in search.fixed and range_.then:
                for word, option in range_.options.items():
                    chosen = [trial for trial in of if trial.values[key] == option]
                    if range_.then.get(word):
                        found[f"{question}, where {key} is {word}"] = _shares(search, chosen, scores)
    return {question: shares for question, shares in found.items() if shares}


def _shares(search: Search, trials: list[Trial], scores: dict[int, float]) -> dict[str, float]:
    """Nothing where there are too few trials, or all have the same score."""
    if len(trials) < FEWEST or len({scores[trial.number] for trial in trials}) < 2:
        return {}
    frozen = {trial.number: trial for trial in search.study.get_trials(deepcopy=False)}
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        of = frozen[trial.number]
        copy: Any = create_trial(
            state=TrialState.COMPLETE,
            params=of.params,
            distributions=of.distributions,
            value=scores[trial.number],
        )
        study.add_trial(copy)
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))
