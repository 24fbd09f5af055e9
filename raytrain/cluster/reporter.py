"""Where rank 0 writes how the run goes: TensorBoard, the history file, and the driver's progress bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from raytrain.cluster.run_folder import HISTORY, TENSORBOARD
from raytrain.config import Config
from raytrain.graph.dependency import ClassDependency
from raytrain.methods.base import Method

HISTOGRAM_VALUES = 16_384
"""Values of a parameter that a histogram looks at, evenly spaced."""

Tell = Callable[[dict[str, Any]], None]
"""Takes a message for the progress bar and returns at once."""


class FolderReporter:
    """Reports into the run's folder.  Scalars that a restarted run writes again replace the old ones."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        first_step: int,
        history: list[dict[str, Any]],
        tell: Tell,
        classes: Sequence[str] = (),
    ):
        self._config, self._folder, self._tell = config, folder, tell
        self._validations = len(history)
        self._classes = classes
        self._artist = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._drawings: list[Future[None]] = []
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=first_step + 1)
        lines = "".join(json.dumps(record) + "\n" for record in history)
        (folder / HISTORY).write_text(lines)

    def step(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            tag = name if name.startswith("teacher/") else f"train/{name}"
            self._board.add_scalar(tag, value, step)
        self._tell({"step": step, **values})

    def validated(self, record: dict[str, Any], values: dict[str, float], method: Method) -> None:
        step = record["step"]
        for name, value in record.items():
            if name not in {"epoch", "step"}:
                tag = name if name.startswith("diagnostics/") else f"validation/{name}"
                self._board.add_scalar(tag, value, step)
        if self._validations % self._config.train.histograms_every == 0:
            for name, parameter in method.named_parameters():
                values_of = parameter.detach().flatten()
                stride = max(1, len(values_of) // HISTOGRAM_VALUES)
                self._board.add_histogram(f"parameters/{name}", values_of[::stride], step)
        self._validations += 1
        with (self._folder / HISTORY).open("a") as file:
            file.write(json.dumps({**record, **values}) + "\n")
        self._tell({"validation": record})

    def adopted(self, step: int, graph: ClassDependency, values: dict[str, float]) -> None:
        """The numbers of a graph at once, its picture when a thread has drawn it."""
        for name, value in values.items():
            self._board.add_scalar(f"graph/{name}", value, step)
        self._drawings.append(self._artist.submit(self._draw, step, graph))

    def _draw(self, step: int, graph: ClassDependency) -> None:
        from raytrain.graph.draw import dependency_figure

        names = list(self._classes) or [f"class {k}" for k in range(len(graph.audio_to_visual))]
        self._board.add_figure("graph/dependencies", dependency_figure(graph, names), step)

    def close(self, best: dict[str, Any]) -> None:
        scores = {
            f"best/{name}": value
            for name, value in best.items()
            if name not in {"epoch", "step"} and not name.startswith("diagnostics/")
        }
        self._artist.shutdown()
        for drawing in self._drawings:
            drawing.result()
        self._board.add_hparams(_flatten(self._config.model_dump()), scores, run_name=".")
        self._board.close()


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (bool, int, float)) else str(value)
    return flat
