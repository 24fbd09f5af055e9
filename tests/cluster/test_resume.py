"""A run that is killed, told to end or resized goes on to the same end."""

from __future__ import annotations

import json
import random
import signal
import warnings
from pathlib import Path

import pytest
import torch

from raytrain.cluster import checkpoint
from raytrain.cluster.alone import train_alone
from raytrain.cluster.forked import World, finish, prepared
from raytrain.cluster.identity import run_digest
from raytrain.cluster.preemption import Agreement, Heard, Preempted
from raytrain.cluster.row_stream import RowStream
from raytrain.cluster.training import BEST, CHECKPOINTS
from raytrain.collectives import rank
from raytrain.config import Config, build
from raytrain.data.manifest import Dataset
from raytrain.methods import resolve
from tests.datasets import small_dataset
from tests.worlds import run_world

CPU = torch.device("cpu")
OPTIONS = (
    "model.hidden=[16]",
    "model.embedding=8",
    "data.batch_size=40",
    "train.epochs=5",
    "train.precision=float32",
    "train.patience=off",
    "train.checkpoint_every=3",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    made = small_dataset(tmp_path_factory.mktemp("data"))
    train_alone(config_of(), made, tmp_path_factory.mktemp("warm"))  # forked ranks inherit what this imports
    return made


def config_of(*overrides: str) -> Config:
    return build(overrides=[*OPTIONS, *overrides])


def test_the_fingerprint_of_rows_is_that_of_their_concatenation() -> None:
    rows = torch.randint(0, 1000, (57,), generator=torch.Generator().manual_seed(0))

    def of(parts: list[torch.Tensor]) -> str:
        stream = RowStream()
        for part in parts:
            stream.add(part)
        return str(stream)

    def mixed(row: int) -> int:
        z = (row + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    expected = 0
    for row in rows.tolist():  # Horner's rule over whole numbers
        expected = (expected * 0x9E3779B97F4A7C15 + mixed(row)) % 2**64
    assert of([rows]) == f"57:{expected:016x}"
    assert of([rows[:10], rows[10:11], rows[11:]]) == of([rows])
    swapped = rows.clone()
    swapped[[3, 40]] = swapped[[40, 3]]
    assert rows[3] != rows[40] and of([swapped]) != of([rows])
    assert of([rows[:-1]]) != of([rows])
    resumed = RowStream()
    resumed.restore(of([rows[:20]]))
    resumed.add(rows[20:])
    assert str(resumed) == of([rows])


def test_the_rows_that_a_run_saw_are_those_of_the_order(dataset: Dataset, tmp_path: Path) -> None:
    config = resolve(config_of("train.epochs=2"), dataset.manifest)
    training, source, validation = prepared(config, dataset, tmp_path / "run", 0, 1)
    training.run(source, validation, None)
    expected = RowStream()
    for epoch in range(2):
        expected.add(torch.from_numpy(source.order.rows_of_epoch(epoch)))
    assert run_digest(tmp_path / "run")["rows"] == str(expected)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_anywhere_the_run_ends_with_the_same_digests(
    dataset: Dataset, tmp_path: Path, ranks: int
) -> None:
    """SIGKILL of each rank at steps and moments drawn by lot, three times in one run."""
    config = config_of("model.dropout=0.3", "train.ema_decay=0.9")
    undisturbed = World(config, dataset.path, tmp_path / "a", ranks)
    finish(undisturbed)
    draw, killed = random.Random(ranks), World(config, dataset.path, tmp_path / "b", ranks)
    for first in (1, 6, 11):
        killed.start()
        step, after = first + draw.randrange(3), draw.random() * 0.02
        assert killed.kill_at(step, rank=draw.randrange(ranks), after_s=after)
        assert killed.wait() != 0
    finish(killed)
    expected, found = run_digest(undisturbed.folder), run_digest(killed.folder)
    assert found == expected
    assert {"model", "ema", "optimizer", "history", "state", "rows"} <= expected.keys()
    assert killed.seen[1] > undisturbed.seen[1], "steps were done again"
    best = [checkpoint.read(world.folder / BEST) for world in (undisturbed, killed)]
    assert best[0].state == best[1].state
    assert all(torch.equal(best[0].tensors["model"][k], v) for k, v in best[1].tensors["model"].items())


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_to_a_rank_ends_all_ranks_with_a_checkpoint_of_the_next_step(
    dataset: Dataset, tmp_path: Path, ranks: int
) -> None:
    config = config_of("train.checkpoint_every=off", "train.checkpoint_seconds=1e6", "train.epochs=8")
    world = World(config, dataset.path, tmp_path / "b", ranks)
    world.start()
    assert world.kill_at(5, rank=ranks - 1, number=signal.SIGTERM)
    assert world.wait() != 0
    (saved,) = checkpoint.list_steps(world.folder / CHECKPOINTS)
    step = int(saved.name.removeprefix(checkpoint.PREFIX))
    assert 5 < step < 32 and step == world.step + 1
    assert world.said(0).read_text() == f"Preempted: told to end; the checkpoint of step {step} is written"
    finish(world)
    finish(plain := World(config, dataset.path, tmp_path / "a", ranks))
    assert run_digest(world.folder) == run_digest(plain.folder)


def test_all_ranks_act_after_the_same_step(tmp_path: Path) -> None:
    """One of three ranks hears; each acts one step later, once."""

    def act(_: int) -> torch.Tensor:
        heard = iter([Heard.NOTHING, Heard.SAVE if rank() == 1 else Heard.NOTHING, *[Heard.NOTHING] * 3])
        agreement = Agreement(lambda: next(heard), CPU)
        found = [int(agreement.after(step)) for step in range(1, 6)]
        agreement.finish()
        return torch.tensor(found)

    for found in run_world(3, act, tmp_path):
        assert found.tolist() == [0, 0, int(Heard.SAVE), 0, 0]


def test_a_warning_saves_once_and_the_run_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    config = resolve(config_of("train.checkpoint_every=off", "train.epochs=1"), dataset.manifest)
    training, source, validation = prepared(config, dataset, tmp_path / "run", 0, 1)
    heard = iter([Heard.SAVE, Heard.NOTHING, Heard.NOTHING])
    training.run(source, validation, None, listen=lambda: next(heard))
    steps = [path.name for path in checkpoint.list_steps(tmp_path / "run" / CHECKPOINTS)]
    assert steps == ["step-00000001", "step-00000004"]
    training, source, validation = prepared(config, dataset, tmp_path / "stopped", 0, 1)
    with pytest.raises(Preempted) as told:
        training.run(source, validation, None, listen=lambda: Heard.STOP)
    assert (told.value.heard, told.value.step) == (Heard.STOP, 1)


def test_a_run_of_two_one_and_two_ranks_has_the_batches_and_losses_of_one_world(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Elastic: dropout is drawn by rank, so it is off; sums are taken in another order, so equal to 1e-5."""
    config = resolve(config_of("model.dropout=0", "train.epochs=6", "train.log_every=1"), dataset.manifest)
    losses: dict[str, list[float]] = {}

    def train(folder: Path, ranks: int, until: int) -> None:
        def one(of_rank: int) -> torch.Tensor:
            training, source, validation = prepared(config, dataset, folder, of_rank, ranks)

            class Told:
                def step(self, step: int, values: dict[str, float]) -> None:
                    seen.append(values["loss"])

                def validated(self, *unused: object) -> None: ...
                def adopted(self, *unused: object) -> None: ...
                def close(self, best: object) -> None: ...

            seen: list[float] = []
            training.run(source, validation, Told() if of_rank == 0 else None, until=until)
            if of_rank == 0:
                training.save()
            return torch.tensor(seen, dtype=torch.float64)

        scratch = tmp_path / f"{folder.name}-{until}"
        scratch.mkdir()
        losses.setdefault(folder.name, []).extend(run_world(ranks, one, scratch)[0].tolist())

    train(tmp_path / "two", 2, 6)
    for ranks, until in ((2, 2), (1, 4), (2, 6)):
        train(tmp_path / "elastic", ranks, until)
    assert len(losses["two"]) == len(losses["elastic"]) == 24
    assert losses["elastic"] == pytest.approx(losses["two"], rel=1e-5)
    assert run_digest(tmp_path / "two")["rows"] == run_digest(tmp_path / "elastic")["rows"]


def test_a_kill_between_the_two_renames_of_a_save_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best"
    checkpoint.save(path, {"model": {"w": torch.zeros(2)}}, {"step": 1})
    plain = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(checkpoint.PARTIAL):
            raise KeyboardInterrupt
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, {"model": {"w": torch.ones(2)}}, {"step": 2})
    assert not path.exists()
    checkpoint.settle(tmp_path)
    assert checkpoint.read(path).state == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["best"]


def test_a_damaged_checkpoint_does_not_push_whole_ones_out(tmp_path: Path) -> None:
    """With one checkpoint kept: the damaged newest goes when the run, back behind it, saves again."""
    for step in (3, 6):
        path = checkpoint.path_of_step(tmp_path, step)
        checkpoint.save(path, {"model": {"w": torch.zeros(1)}}, {"step": step})
    (checkpoint.path_of_step(tmp_path, 6) / "state.json").write_text("{")
    saved = checkpoint.path_of_step(tmp_path, 4)
    checkpoint.save(saved, {"model": {"w": torch.zeros(1)}}, {"step": 4})
    checkpoint.prune(tmp_path, 1, saved)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_the_history_survives(dataset: Dataset, tmp_path: Path) -> None:
    """Digests of histories differ where a single number does."""
    config = config_of("train.epochs=1")
    train_alone(config, dataset, tmp_path / "run")
    before = run_digest(tmp_path / "run")
    (path,) = checkpoint.list_steps(tmp_path / "run" / CHECKPOINTS)[-1:]
    found = checkpoint.read(path)
    state = json.loads(json.dumps(found.state))
    state["history"][0]["map"] += 1e-9
    checkpoint.save(path, found.tensors, state)
    after = run_digest(tmp_path / "run")
    assert [name for name in before if before[name] != after[name]] == ["history"]
