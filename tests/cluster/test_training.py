from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raytrain.cluster import checkpoint
from raytrain.cluster.alone import Held, train_alone
from raytrain.cluster.sources import Resident, batch_of
from raytrain.cluster.stream import Streamed
from raytrain.cluster.training import BEST, CHECKPOINTS, State
from raytrain.cluster.validation import Validation
from raytrain.config import Config, build
from raytrain.data.manifest import Dataset
from raytrain.data.reading import Reading
from raytrain.data.schedule import Schedule
from raytrain.methods import resolve
from tests.datasets import small_dataset
from tests.worlds import run_world

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def config_of(*overrides: str) -> Config:
    return build(
        overrides=[
            "model.hidden=[16]",
            "model.embedding=8",
            "data.batch_size=40",
            "train.epochs=6",
            "train.precision=float32",
            "train.patience=off",
            *overrides,
        ]
    )


def final(folder: Path) -> dict[str, Tensor]:
    found = checkpoint.latest(folder / CHECKPOINTS)
    assert found is not None
    return {f"{part} {name}": t for part, group in found.tensors.items() for name, t in group.items()}


def test_a_run_learns_and_keeps_its_best_weights(dataset: Dataset, tmp_path: Path) -> None:
    state = train_alone(config_of("train.epochs=20", "optim.lr=1e-2"), dataset, tmp_path)
    scores = [record["map"] for record in state.history]
    assert scores[-1] > 0.8 > scores[0]
    assert state.best_score == max(scores)
    best = checkpoint.read(tmp_path / BEST)
    assert best.state["step"] == state.best_step
    assert best.state["score"] == state.best_score


def test_a_run_that_pauses_is_the_run_that_does_not(dataset: Dataset, tmp_path: Path) -> None:
    config = resolve(config_of("method.loss=info-nce"), dataset.manifest)
    undisturbed = train_alone(config, dataset, tmp_path / "a")
    held = Held.of(config, dataset, CPU)
    training, source = held.prepare(config, tmp_path / "b")
    epochs = []
    for until in (1, 1, 4, 6):
        state = training.run(source, held.validation, None, until=until)
        epochs.append(len(state.history))
    assert epochs == [1, 1, 4, 6]
    assert training.finished
    assert state == undisturbed
    one, other = final(tmp_path / "a"), final(tmp_path / "b")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Killed(Exception):
    """Stands for the end of a process between two steps."""


def test_a_killed_run_goes_on_bit_for_bit(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout on, killed in the middle of an epoch, resumed from the last checkpoint."""
    config = config_of("train.checkpoint_every=3", "method.loss=info-nce")
    undisturbed = train_alone(config, dataset, tmp_path / "a")
    plain = Resident.batches

    def killing(self: Resident, first_step: int):  # type: ignore[no-untyped-def]
        for i, batch in enumerate(plain(self, first_step)):
            if first_step + i == 11:
                raise Killed
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Resident, "batches", killing)
        with pytest.raises(Killed):
            train_alone(config, dataset, tmp_path / "b")
    assert [path.name for path in checkpoint.list_steps(tmp_path / "b" / CHECKPOINTS)][-1] == "step-00000009"
    resumed = train_alone(config, dataset, tmp_path / "b")
    assert vars(resumed) == vars(undisturbed)
    expected, found = final(tmp_path / "a"), final(tmp_path / "b")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_early_stopping_ends_the_run_and_stays_ended(dataset: Dataset, tmp_path: Path) -> None:
    config = config_of("train.patience=2", "train.epochs=40", "optim.lr=1e-9")
    state = train_alone(config, dataset, tmp_path)
    assert state.stopped and state.step < 40 * 4
    assert train_alone(config, dataset, tmp_path).step == state.step


def test_the_last_weights_are_kept_where_they_are_asked_for(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where validation falls from epoch to epoch, the best weights are those of the first."""
    scores = (-float(number) for number in range(100))
    monkeypatch.setattr(Validation, "score", lambda *_: {"map": next(scores)})
    options = ("train.patience=off", "train.epochs=3")
    best = train_alone(config_of(*options), dataset, tmp_path / "best")
    last = train_alone(config_of(*options, "train.select=last"), dataset, tmp_path / "last")
    assert (best.best_step, last.best_step) == (best.step / 3, last.step)
    newest = checkpoint.read(checkpoint.list_steps(tmp_path / "last" / CHECKPOINTS)[-1]).tensors["model"]
    first, kept = (checkpoint.read(tmp_path / name / "best").tensors["model"] for name in ("best", "last"))
    assert all(torch.equal(kept[name], newest[name]) for name in newest)
    assert not all(torch.equal(first[name], newest[name]) for name in newest)
    with pytest.raises(ValueError, match=r"set train\.patience = off"):
        config_of("train.select=last", "train.patience=3")


def test_a_gradient_that_is_not_finite_stops_the_run_and_says_where(dataset: Dataset, tmp_path: Path) -> None:
    config = config_of("optim.lr=1e30", "optim.clip=off", "optim.warmup=0.0", "model.norm=none")
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d+: the gradient is not finite"):
        train_alone(config, dataset, tmp_path)


def test_ranks_see_the_same_global_batches(dataset: Dataset) -> None:
    config = resolve(config_of("data.batch_size=47"), dataset.manifest)
    reading = Reading.of(dataset, "train", config)
    order, rows = reading.order(config), batch_of(reading.whole())

    def seen(ranks: int, steps: int) -> list[list[int]]:
        parts = [Resident(rows, order, rank, ranks, CPU).batches(2) for rank in range(ranks)]
        return [[i for part in parts for i in next(part).row.tolist()] for _ in range(steps)]

    assert seen(1, 9) == seen(2, 9) == seen(4, 9)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("first_step", [0, 2, 5])
def test_streamed_blocks_are_the_resident_batches(dataset: Dataset, ranks: int, first_step: int) -> None:
    """What the tasks read and the ranks decode, without Ray between them."""
    config = resolve(config_of("data.batch_size=45", "data.window_mb=0.003"), dataset.manifest)
    reading = Reading.of(dataset, "train", config)
    order, epochs = reading.order(config), 3
    assert order.num_windows > 1
    schedule = Schedule(order, first_step, epochs, ranks)
    tables = [schedule.block(schedule.item(i), reading).table(reading.schema) for i in range(len(schedule))]
    for group in range(0, len(tables), ranks):  # what keeps Ray's splitter in step
        assert len({table.num_rows for table in tables[group : group + ranks]}) == 1
    for rank in range(ranks):
        source = Streamed(lambda rank=rank: iter(tables[rank::ranks]), schedule, reading, rank, CPU)
        resident = Resident(batch_of(reading.whole()), order, rank, ranks, CPU).batches(first_step)
        count = 0
        for streamed in source.batches(first_step):
            expected = next(resident)
            assert torch.equal(streamed.row, expected.row)
            assert streamed.labels is not None and torch.equal(streamed.labels, expected.labels)
            for view in expected.views:
                assert torch.equal(streamed.views[view], expected.views[view])
            count += 1
        assert count == epochs * order.num_batches - first_step


def test_rows_out_of_order_are_refused(dataset: Dataset) -> None:
    config = resolve(config_of(), dataset.manifest)
    reading = Reading.of(dataset, "train", config)
    schedule = Schedule(reading.order(config), 0, 2, 1)
    wrong = schedule.block(schedule.item(1), reading).table(reading.schema)
    source = Streamed(lambda: iter([wrong]), schedule, reading, 0, CPU)
    with pytest.raises(RuntimeError, match="other rows than the sample order says"):
        next(source.batches(0))


def test_two_ranks_train_like_one(dataset: Dataset, tmp_path: Path) -> None:
    """Not bit for bit, for sums are taken in another order, but the same run."""
    config = config_of("model.dropout=0.0", "train.epochs=2")

    def train(rank: int) -> Tensor:
        from raytrain.cluster.training import Training
        from raytrain.cluster.validation import Validation
        from raytrain.collectives import num_ranks
        from raytrain.methods import build as build_method

        resolved = resolve(config, dataset.manifest)
        reading = Reading.of(dataset, "train", resolved)
        torch.manual_seed(0)
        method = build_method(resolved, dataset.manifest)
        order = reading.order(resolved)
        training = Training(resolved, method, order, tmp_path / f"run-{num_ranks()}", CPU)
        source = Resident(batch_of(reading.whole()), order, rank, num_ranks(), CPU)
        state: State = training.run(
            source, Validation(Reading.of(dataset, "validation", resolved), CPU), None
        )
        (tmp_path / f"history-{num_ranks()}-{rank}.json").write_text(json.dumps(state.history))
        return torch.cat([p.detach().flatten() for p in method.parameters()])

    one = run_world(1, train, tmp_path)[0]
    two = run_world(2, train, tmp_path)
    assert torch.equal(two[0], two[1])
    torch.testing.assert_close(two[0], one, rtol=1e-3, atol=1e-4)
    histories = [json.loads((tmp_path / f"history-{name}.json").read_text()) for name in ("2-0", "2-1")]
    assert histories[0] == histories[1]
