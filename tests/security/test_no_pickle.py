"""No file of ours is unpickled: an audit hook counts every class that a pickle asks for, on all of our file paths."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import json, sys, traceback
from pathlib import Path

counted = []

def hook(event, arguments):
    if event == "pickle.find_class":
        stack = traceback.extract_stack()
        counted.append([str(arguments), *(f"{f.filename}:{f.lineno}" for f in stack[-8:-1])])

scratch = Path(sys.argv[1])
import h5py, numpy as np, scipy.io, torch, torch._dynamo
import pyarrow as pa, pyarrow.parquet as pq
from tests.datasets import small_dataset, write_h5
from tests.cluster.runs import finished_run
import raytrain.cluster.launch
sys.addaudithook(hook)

from raytrain.data.ingest import ingest
from raytrain.data.options import IngestConfig
from raytrain.data.manifest import open_dataset
from raytrain.data.shards import read_split

dataset = small_dataset(scratch)                                     # HDF5
with h5py.File(scratch / "small.h5") as file:
    arrays = {name: file[name][()] for name in file}
np.savez(scratch / "a.npz", **arrays)
scipy.io.savemat(scratch / "a.mat", arrays)
(scratch / "npy").mkdir()
for name, values in arrays.items():
    np.save(scratch / "npy" / f"{name}.npy", values)
table = {
    "audio": pa.array(list(arrays["audio_train"])), "visual": pa.array(list(arrays["visual_train"])),
    "lab": pa.array(arrays["lab_train"]),
}
pq.write_table(pa.table(table), scratch / "a.parquet")
read = ["h5"]
for name in ("a.npz", "a.mat", "npy", "a.parquet"):
    made = ingest([scratch / name], scratch / f"out-{name}", config=IngestConfig())
    open_dataset(made.path).verify("train")
    assert len(read_split(made, "train")) > 0
    read.append(name)

from raytrain.cluster.alone import train_alone
from raytrain.cluster.bundle import open_index, write_index
from raytrain.cluster.evaluate import Options, evaluate
from raytrain.cluster.identity import run_digest
from raytrain.cluster.run_folder import read_config
from raytrain.evaluation.report import write_report

run = finished_run(scratch / "run", dataset, "train.checkpoint_every=3")
train_alone(read_config(run), dataset, run)                          # resumes: reads the checkpoint
run_digest(run)
(run / "evaluation-test.json").write_text(json.dumps(evaluate(run, Options())))
write_report(run)
write_index(run, scratch / "index", ("test",))
open_index(scratch / "index")
print(json.dumps({"read": read, "found": counted}))
"""


def test_pickle_looks_up_no_class_while_we_ingest_train_save_load_and_export(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["read"] == ["h5", "a.npz", "a.mat", "npy", "a.parquet"]
    assert found["found"] == []


def test_the_hook_counts(tmp_path: Path) -> None:
    script = (
        "import sys, pickle, fractions; n = []\n"
        "sys.addaudithook(lambda event, _: n.append(event) if event == 'pickle.find_class' else None)\n"
        "pickle.loads(pickle.dumps(fractions.Fraction(1, 2))); print(len(n))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
