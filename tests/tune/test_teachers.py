from __future__ import annotations

import json
from pathlib import Path

import pytest

from raytrain.cluster.alone import train_alone
from raytrain.cluster.teacher_store import GRAPHS, TEACHER
from raytrain.config import build
from raytrain.data.manifest import Dataset
from raytrain.methods import METHODS
from tests.datasets import small_dataset
from tests.tune.test_whole import SMALL, options
from tune.driver import Base
from tune.space import SPACES, TEACHER_KEYS, ranges_of
from tune.teachers import KEY, draw_teachers, saving, student_space
from tune.whole import run_search


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def test_the_keys_of_a_teacher_are_keys_of_its_space() -> None:
    for method, keys in TEACHER_KEYS.items():
        assert method in METHODS
        assert set(keys) <= SPACES[method].keys()


def test_teachers_are_drawn_by_the_seed_and_called_by_their_parameters(
    dataset: Dataset, tmp_path: Path
) -> None:
    base = Base({"data": {"path": dataset.path}, "method": {"name": "ili"}}, dataset.manifest)

    def drawn(seed: int, count: int = 3, fixed: dict[str, object] | None = None) -> list[str]:
        found = draw_teachers(
            base, SPACES["ili"], fixed or {}, count=count, seed=seed, epochs=9, folder=tmp_path
        )
        assert all(teacher.run_values()["train.epochs"] == teacher.epochs + 1 for teacher in found)
        assert all(1 <= teacher.epochs <= 8 for teacher in found)
        return [teacher.folder.name for teacher in found]

    assert drawn(0) == drawn(0)
    assert drawn(0)[0] == drawn(1)[0], "the first is the default"
    assert drawn(0)[1:] != drawn(1)[1:]
    assert len(set(drawn(0, 6))) == 6
    everything = dict.fromkeys((*TEACHER_KEYS["ili"], "optim.lr"))
    assert len(drawn(0, 6, everything)) == 1, "all alike where nothing is open"


def test_trials_share_teachers_that_are_trained_once(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    of_all_clips = (*SMALL, "method.one_view=off")
    asked = {"teachers": 2, "trials": 4, "epochs": 3, "seeds": 1, "survivors": 1, "overrides": of_all_clips}
    run_search(options(dataset, out, method="ili", **asked))
    journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    teachers = [found["teacher"] for found in journal if found["what"] == "teacher"]
    assert len(teachers) == 2
    for name in teachers:
        assert (out / "teachers" / name / TEACHER).is_dir() and (out / "teachers" / name / GRAPHS).is_dir()
    trials = [found["values"] for found in journal if found["what"] == "started"]
    assert {Path(values[KEY]).name for values in trials} <= set(teachers)
    assert not {key for values in trials for key in values} & set(TEACHER_KEYS["ili"])
    assert {found["state"] for found in journal if found["what"] == "ended"} <= {"complete", "stopped"}
    assert "4 trials shared 2 teachers" in capsys.readouterr().out
    best = build(out / "best.toml", ["train.epochs=2"])
    assert best.train.teacher == trials[0][KEY] or best.train.teacher in {values[KEY] for values in trials}
    assert train_alone(best, dataset, tmp_path / "again").history
    assert best.model.hidden == (16,) and SMALL[0] == "model.hidden=[16]"


def test_a_student_draws_nothing_of_its_teacher(dataset: Dataset, tmp_path: Path) -> None:
    base = Base({"data": {"path": dataset.path}, "method": {"name": "ili"}}, dataset.manifest)
    teachers = draw_teachers(base, SPACES["ili"], {}, count=3, seed=0, epochs=9, folder=tmp_path)
    keys = {key for key, _ in ranges_of(student_space(SPACES["ili"], "ili", teachers))}
    assert keys == {key for key, _ in ranges_of(SPACES["ili"])} - set(TEACHER_KEYS["ili"]) | {KEY}
    shared = {str(teacher.folder): teacher.student_values() for teacher in teachers}
    with_teachers = Base(base.values, dataset.manifest, shared)
    for teacher in teachers:
        run, student = base.config(teacher.run_values()), with_teachers.config({KEY: str(teacher.folder)})
        assert run.model.hidden == student.model.hidden and run.model.embedding == student.model.embedding
        assert run.method["teacher_hidden"] == student.method["teacher_hidden"]
        assert run.train.teacher is None and student.train.teacher == str(teacher.folder)


def test_the_saving_by_hand() -> None:
    assert saving(10, 2, 8.0).endswith("8.0 s of teaching instead of about 40.0 s, 32.0 s saved")
