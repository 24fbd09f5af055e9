"""Where data and runs may lie, which versions may run, and where logs go."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from raytrain.cluster import versions
from raytrain.cluster.alone import train_alone
from raytrain.cluster.identity import run_digest
from raytrain.cluster.launch import Terminated
from raytrain.cluster.logs import LOG_BYTES, LOGS, LOGS_KEPT, logging_into
from raytrain.cluster.progress import Mailbox
from raytrain.cluster.run_folder import create
from raytrain.config import build
from raytrain.data.manifest import open_dataset
from tests.cluster.runs import SMALL
from tests.datasets import small_dataset


def test_data_at_a_uri_are_the_data_at_a_path(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path)
    there = open_dataset(Path(dataset.path).as_uri())
    assert there.path.startswith("file:///") and there.fingerprint == dataset.fingerprint
    there.verify("train")
    for name, data in (("path", dataset), ("uri", there)):
        config = build(overrides=[*SMALL, "train.epochs=1"], data={"path": data.path})
        train_alone(config, data, tmp_path / name)
    assert run_digest(tmp_path / "path") == run_digest(tmp_path / "uri")


@pytest.mark.parametrize("out", ["s3://bucket/run", "gs://bucket/run", "file:///tmp/run"])
def test_a_run_at_a_uri_is_refused(tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = small_dataset(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"object stores have none: give --out on a local or shared disk"):
        create(Path(out), build(), dataset)
    assert sorted(tmp_path.iterdir()) == before


def test_versions_below_the_floors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.check_versions()
    real = versions.version
    for name, old in (("ray", "2.54.1"), ("torch", "2.9.1+cpu"), ("pyarrow", "14.0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(versions, "version", lambda of, name=name, old=old: old if of == name else real(of))
            with pytest.raises(
                ValueError, match=rf"{name} {old.replace('+', '.')} is installed, .* pip install"
            ):
                versions.check_versions()


def test_logs_are_in_the_run_and_bounded(tmp_path: Path) -> None:
    log = logging.getLogger("raytrain.cluster.test")
    with logging_into(tmp_path, "rank-0"):
        for line in range(60_000):
            log.info("line %d of many, long enough that files must be rotated at some point, surely", line)
    log.warning("after the block")
    files = sorted((tmp_path / LOGS).iterdir())
    assert [file.name for file in files] == ["rank-0.log", "rank-0.log.1", "rank-0.log.2"]
    assert sum(file.stat().st_size for file in files) <= (LOGS_KEPT + 1) * LOG_BYTES
    assert "line 59999 of many" in files[0].read_text()
    assert "after the block" not in files[0].read_text()


def test_the_mailbox_passes_on_that_the_driver_was_told_to_end() -> None:
    box = Mailbox()
    assert box.post({"step": 1}) is False
    assert box.drain() == ({"step": 1}, [])
    box.drain(True)
    assert box.post({"validation": {"epoch": 1}}) is True
    box.drain()
    assert box.post({"step": 2}) is True
    assert Terminated("x").exit_code == 143


def test_a_run_that_was_told_to_end_says_so_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raytrain import cli
    from raytrain.cluster import launch

    def stopped(*unused: object, **unused_by_name: object) -> None:
        raise Terminated("told to end; the checkpoint of step 7 is written")

    monkeypatch.setattr(launch, "train", stopped)
    monkeypatch.setattr("sys.argv", ["raytrain", "train", "somewhere", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 143
    said = capsys.readouterr()
    assert "raytrain train: told to end; the checkpoint of step 7 is written" in said.err
    assert "raytrain train --resume" in said.out.replace("\n", " ")
