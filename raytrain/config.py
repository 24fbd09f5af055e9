"""A run as frozen models: what a TOML file, dotted overrides and the command line come together to.

Unknown keys are errors that name the nearest known key.  Nothing here imports torch or Ray, so that a
configuration can be checked anywhere.  The settings of a method live in the method's own file;
`methods.resolve` checks them.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

OFF = "off"
"""TOML has no null: this word stands for it, in files and in overrides."""


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Data(Section):
    path: str = Field("", description="folder that `raytrain ingest` wrote")
    views: tuple[str, ...] = Field(("audio", "visual"), description="views to train on, audio before visual")
    batch_size: int = Field(400, ge=2, description="rows of one global batch, over all workers")
    cache: Literal["auto", "stream", "memory", "device"] = Field(
        "auto",
        description="where the training rows live: streamed by Ray Data, in host memory, on the device",
    )
    annotation: Literal["auto", "none", "label", "events"] = Field(
        "auto",
        description="what methods may see: the annotated class, the multi-hot event sets, or nothing; "
        "auto: the class where there is one, else the event sets",
    )
    verify: Literal["sha256", "size"] = Field(
        "sha256", description="what is checked of the shards before a run"
    )
    window_mb: float = Field(
        32.0, gt=0, description="feature bytes that are shuffled together when streaming"
    )


class Model(Section):
    hidden: tuple[int, ...] = Field((1024, 1024), description="widths of the hidden layers of each tower")
    embedding: int = Field(128, ge=1, description="size d of the embedding")
    norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="normalisation of hidden layers; batch statistics are those of the world"
    )
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    dropout: float = Field(0.2, ge=0, lt=1)
    input_dropout: float = Field(0.0, ge=0, lt=1, description="share of scaled input features set to zero")


class Optim(Section):
    name: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-3, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with linear warm-up")
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr: float = Field(0.01, ge=0, le=1, description="last learning rate as a share of the peak")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; off for no clipping")


class Train(Section):
    epochs: int = Field(60, ge=1)
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=1, description="Ray Train workers; each takes a share of the global batch")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="train with as few workers where nodes are lost, until others come; off: with all",
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="gpu: one GPU per worker, nccl")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="threads of a worker; off: this machine's cores shared out, one beside a GPU"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: the faster of the two, by a measurement, where the hardware has bfloat16"
    )
    compile: bool = Field(False, description="torch.compile the towers")
    ema_decay: float | None = Field(
        0.99, gt=0, lt=1, description="decay of the averaged copy of the model; off for no copy"
    )
    evaluate: Literal["student", "ema"] = Field(
        "student", description="whose embeddings are validated and kept"
    )
    validate_every: int = Field(1, ge=1, description="epochs between two validations")
    patience: int | None = Field(
        20, ge=1, description="validations without a better MAP before the run stops; off: never stop early"
    )
    select: Literal["best", "last"] = Field(
        "best", description="weights that the run keeps: those of the best validation, or of the last one"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; off: by checkpoint_seconds alone"
    )
    checkpoint_seconds: float = Field(
        20.0, ge=0, description="a validated epoch ends with a checkpoint when the last one is so old"
    )
    keep_checkpoints: int = Field(2, ge=1)
    max_failures: int = Field(3, ge=0, description="restarts of the worker group before the run gives up")
    stuck_seconds: float = Field(
        600.0, gt=0, description="a worker for which the others have waited so long has failed"
    )
    log_every: int = Field(10, ge=1, description="steps between two TensorBoard points")
    histograms_every: int = Field(10, ge=1, description="validations between two TensorBoard histograms")
    diagnose_every: int | None = Field(
        200, ge=1, description="steps between two looks at the gradient of each loss term; off: never"
    )
    teacher: str | None = Field(
        None, description="folder of a run whose trained teacher and class graph this run starts from"
    )
    publish_every: int = Field(
        100, ge=1, description="steps between two copies of a teacher's weights to its actor"
    )
    deterministic: bool = Field(True, description="refuse operations without a repeatable result")

    @model_validator(mode="after")
    def _ema_exists(self) -> Train:
        if self.evaluate == "ema" and self.ema_decay is None:
            raise ValueError("evaluate = 'ema' needs train.ema_decay, which is off; set it, say to 0.99")
        return self

    @model_validator(mode="after")
    def _stops_early_by_the_best(self) -> Train:
        if self.select == "last" and self.patience is not None:
            raise ValueError(
                f"train.select is 'last', and train.patience = {self.patience} would stop the run by its best; set "
                "train.patience = off"
            )
        return self

    @model_validator(mode="after")
    def _range_of_workers(self) -> Train:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"train.min_workers = {self.min_workers} is more than train.workers = {self.workers}; "
                "lower it, or set it to off"
            )
        return self


class Config(Section):
    """A whole run."""

    data: Data = Data()
    model: Model = Model()
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "metric"})
    optim: Optim = Optim()
    train: Train = Train()


SECTIONS: dict[str, type[Section]] = {"data": Data, "model": Model, "optim": Optim, "train": Train}


def nearest(word: str, known: Sequence[str]) -> str:
    """' Did you mean ...?' where a known word is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_key(key: str, known: Sequence[str]) -> str:
    last = key.rpartition(".")[2]
    return f"{key!r} is unknown; known: {', '.join(known)}.{nearest(last, list(known))}"


S = TypeVar("S", bound=Section)


def validate(model: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """`model` made of `values`; a ValueError of one line names the first wrong key and what it may be."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(_first_error(model, error, prefix)) from None


def _first_error(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join([*([prefix] if prefix else []), *location])
    if first["type"] == "extra_forbidden":
        owner = model
        for part in location[:-1]:
            owner = _section_of(owner.model_fields[part].annotation)
        return unknown_key(key, list(owner.model_fields))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{prefix + ': ' if prefix else ''}{message}"
    return f"{key} is {first['input']!r}; {message[0].lower()}{message[1:]}"


def _section_of(annotation: Any) -> type[BaseModel]:
    """The section of a field, which may be optional."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise AssertionError(f"{annotation} is no section, yet a key of it was refused")


def parse_override(text: str) -> tuple[list[str], Any]:
    """`optim.lr=3e-4` as (["optim", "lr"], 0.0003). The value is TOML; a bare word is a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text!r} is not of the form section.key=value, e.g. --set optim.lr=3e-4")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return key.strip().split("."), None if parsed == OFF else parsed


def override(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Puts `value` at `path` into the nested `values`, in place."""
    here = values
    for i, part in enumerate(path[:-1]):
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            raise ValueError(f"--set {'.'.join(path)}: {'.'.join(path[: i + 1])} is a value, not a section")
    here[path[-1]] = value


def load_values(path: Path) -> dict[str, Any]:
    """The nested values of a TOML file, or of the resolved `config.json` of a run."""
    try:
        text = path.read_text()
        return json.loads(text) if path.suffix == ".json" else _off_is_none(tomllib.loads(text))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give a TOML file, see `raytrain config show`") from None
    except (ValueError, RecursionError) as error:  # of numbers without end and nesting without end too
        raise ValueError(f"{path}: not valid {path.suffix.lstrip('.').upper()}: {error}") from None


def _off_is_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _off_is_none(value) if isinstance(value, dict) else None if value == OFF else value
        for key, value in values.items()
    }


def build(file: Path | None = None, overrides: Sequence[str] = (), **sections: Mapping[str, Any]) -> Config:
    """Defaults, then the file, then `sections` (the command line's own options), then the dotted overrides."""
    values: dict[str, Any] = load_values(file) if file else {}
    for section, entries in sections.items():
        for key, value in entries.items():
            override(values, [section, key], value)
    for text in overrides:
        override(values, *parse_override(text))
    return validate(Config, values)


def to_toml(config: Config) -> str:
    """The configuration as a TOML text that `load_values` reads back; null is written as "off"."""
    import tomli_w

    def words(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: words(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [words(entry) for entry in value]
        return OFF if value is None else value

    return tomli_w.dumps(words(config.model_dump()))
