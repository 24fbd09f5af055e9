"""Trials in TensorBoard: the validation curve and the hparams of each, in a folder of its own."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from tune.driver import Trial
from tune.show import number

TENSORBOARD = "tensorboard"


class Board:
    """Hears of trials; writes one when it has ended."""

    def __init__(self, folder: Path):
        self._folder = folder / TENSORBOARD

    def __call__(self, trial: Trial) -> None:
        if not trial.ended or not math.isfinite(trial.score):
            return
        folder = self._folder / f"trial-{trial.number:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(str(folder)) as board:
            for epoch, score in enumerate(trial.curve, start=1):
                board.add_scalar("validation/score", score, epoch)
            values = {
                key: value if isinstance(value, (bool, int, float)) else number(value)
                for key, value in trial.values.items()
            }
            scores = {"best/score": trial.score, "epochs": trial.epoch, "seconds": trial.busy_s}
            board.add_hparams(values, scores, run_name=".")
