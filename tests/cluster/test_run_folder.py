from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain.cluster.run_folder import create, held, read_config
from raytrain.config import build
from tests.cluster.runs import SMALL
from tests.datasets import small_dataset

HOLDER = """
import sys
from pathlib import Path
from raytrain.cluster.run_folder import held
with held(Path(sys.argv[1]), doing="trains"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_process_s_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another process trains there"), held(tmp_path, doing="trains"):
        raise AssertionError("it was held twice")
    other.kill()
    other.communicate()
    with held(tmp_path, doing="trains"):
        pass
    with held(tmp_path, doing="trains"):
        pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    dataset = small_dataset(tmp_path)
    create(tmp_path / "run", build(overrides=SMALL, data={"path": dataset.path}), dataset)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
def test_no_flipped_bit_of_a_run_s_record_changes_what_is_read(run: Path, name: str) -> None:
    """A bit of every eighth byte: named and refused, or without meaning (a blank, the path of the data)."""
    whole, bits = (run / name).read_bytes(), random.Random(0)
    config, refused = read_config(run), 0
    for byte in range(0, len(whole), 8):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << bits.randrange(8)
        (run / name).write_bytes(damaged)
        try:
            found = read_config(run)
        except ValueError as error:
            assert name in str(error)
            refused += 1
        else:
            assert found.model_copy(update={"data": config.data}) == config
            assert found.data.model_copy(update={"path": config.data.path}) == config.data
    assert refused > 0.5 * len(whole) / 8


def test_data_may_move_and_settings_may_not_change(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    moved = {**values, "data": {**values["data"], "path": "/elsewhere"}}
    (run / "config.json").write_text(json.dumps(moved))
    assert read_config(run).data.path == "/elsewhere"
    (run / "config.json").write_text(json.dumps({**moved, "optim": {**values["optim"], "lr": 0.5}}))
    with pytest.raises(ValueError, match=r"config\.json has changed since the run was started"):
        read_config(run)
    (run / "environment.json").unlink()
    with pytest.raises(ValueError, match=r"environment\.json is missing"):
        read_config(run)
