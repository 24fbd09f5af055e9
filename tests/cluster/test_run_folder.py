from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raytrain.cluster.run_folder import held

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
