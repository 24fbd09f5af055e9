"""Forty files that want more than to be read, each opened in a child of its own that may take 2 seconds of CPU and
256 MB, and must end with a named error of one of ours."""

from __future__ import annotations

import base64
import json
import os
import pickle
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raytrain.cluster import checkpoint
from raytrain.cluster.bundle import open_index
from raytrain.cluster.run_folder import read_config
from raytrain.config import build as build_config
from raytrain.data.ingest import ingest
from raytrain.data.manifest import open_dataset
from raytrain.data.options import IngestConfig
from tests.data.test_hostile import Evil, element, header, mat_file, matrix

SECONDS, MEGABYTES = 2.0, 256
Make = Callable[[Path], object]
"""Makes the file in an empty folder and returns what opens it."""

FILES: dict[str, Make] = {}


def hostile(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        assert name not in FILES
        FILES[name] = make
        return make

    return add


def ingesting(path: Path) -> Callable[[], object]:
    return lambda: ingest([path], path.parent / "out", config=IngestConfig())


def h5(name: str, fill: Callable[[h5py.File], object]) -> None:
    @hostile(f"hdf5: {name}")
    def make(folder: Path) -> Callable[[], object]:
        with h5py.File(folder / "a.h5", "w") as file:
            fill(file)
        return ingesting(folder / "a.h5")


def loop(file: h5py.File) -> None:
    group = file.create_group("x")
    group["again"] = group


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 2), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4, 2))
    file.create_virtual_dataset("audio", layout)


def plugin(file: h5py.File) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((2, 2))
    settings.set_filter(305, h5py.h5z.FLAG_OPTIONAL, ())
    h5py.h5d.create(file.id, b"audio", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4, 2)), settings)


def deep(file: h5py.File) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("g")


h5("link to another file", lambda f: f.__setitem__("audio", h5py.ExternalLink("/etc/passwd", "/x")))
h5("symbolic link", lambda f: f.__setitem__("audio", h5py.SoftLink("/elsewhere")))
h5(
    "values in another file",
    lambda f: f.create_dataset("audio", (4, 2), "f4", external=[("/etc/passwd", 0, 64)]),
)
h5("virtual view", virtual)
h5(
    "shape bomb",
    lambda f: f.create_dataset("audio", (10**12, 1024), "f4", chunks=(16, 1024), compression="gzip"),
)
h5("chunk bomb", lambda f: f.create_dataset("audio", (2**20, 2**20), "f4", chunks=(2**14, 2**14)))
h5("references", lambda f: f.create_dataset("audio", (2,), h5py.ref_dtype))
h5("plug-in filter", plugin)
h5("group that holds itself", loop)
h5("name that climbs", lambda f: h5py.h5g.create(f.id, b".."))
h5("thousands of nested groups", deep)


@hostile("hdf5: truncated")
def _(folder: Path) -> Callable[[], object]:
    with h5py.File(folder / "a.h5", "w") as file:
        file["audio"] = np.ones((1000, 100))
    (folder / "a.h5").write_bytes((folder / "a.h5").read_bytes()[:3000])
    return ingesting(folder / "a.h5")


def file_of(name: str, file: str, data: Callable[[Path], bytes]) -> None:
    @hostile(name)
    def make(folder: Path) -> Callable[[], object]:
        (folder / file).write_bytes(data(folder))
        return ingesting(folder / file)


def object_npy(folder: Path) -> bytes:
    np.save(folder / "b.npy", np.array([Evil(folder / "executed")], dtype=object), allow_pickle=True)
    return (folder / "b.npy").read_bytes()


file_of("npy: object array", "a.npy", object_npy)
file_of("npy: a pickle", "a.npy", lambda folder: pickle.dumps(Evil(folder / "executed")))
file_of("npy: shape bomb", "a.npy", lambda _: header((10**15, 1024)) + b"\0" * 64)
file_of("npy: negative shape", "a.npy", lambda _: header((-5, 4)) + b"\0" * 64)
file_of("npy: records", "a.npy", lambda _: header((4,), "V8") + b"\0" * 32)
file_of(
    "npy: header that is code",
    "a.npy",
    lambda _: b"\x93NUMPY\x01\x00\x20\x00__import__('os').system('id')\n\n",
)
file_of("npy: header of 4 GB", "a.npy", lambda _: b"\x93NUMPY\x02\x00\xff\xff\xff\xff{" + b" " * 99)
file_of("a pickle by another name", "a.h5", lambda folder: pickle.dumps(Evil(folder / "executed")))
file_of("a shell script", "a.npz", lambda _: b"#!/bin/sh\nid\n")
file_of("an empty file", "a.parquet", lambda _: b"")


def npz(name: str, fill: Callable[[zipfile.ZipFile, Path], object]) -> None:
    @hostile(f"npz: {name}")
    def make(folder: Path) -> Callable[[], object]:
        with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
            fill(file, folder)
        return ingesting(folder / "a.npz")


def zeros(file: zipfile.ZipFile, folder: Path) -> None:
    with file.open("audio.npy", "w", force_zip64=True) as stream:
        stream.write(header((2**17, 1024)))
        for _ in range(128):
            stream.write(b"\0" * 2**22)


def twice(file: zipfile.ZipFile, folder: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("x.npy", header((4,)) + b"\0" * 16)
        file.writestr("x.npy", header((2,)) + b"\0" * 8)


npz("bomb of zeros", zeros)
npz("path that climbs", lambda f, _: f.writestr("../../etc/cron.npy", header((4, 1)) + b"\0" * 16))
npz("absolute path", lambda f, _: f.writestr("/etc/cron.npy", header((4, 1)) + b"\0" * 16))
npz("a script", lambda f, _: f.writestr("run.sh", b"rm -rf"))
npz("one name twice", twice)
npz("object array", lambda f, folder: f.writestr("audio.npy", object_npy(folder)))
npz("more declared than there", lambda f, _: f.writestr("audio.npy", header((2**20, 4)) + b"\0" * 4096))


@hostile("mat: function handle")
def _(folder: Path) -> Callable[[], object]:
    return ingesting(mat_file(folder / "a.mat", matrix(16, (1, 1), b"audio", b"")))


@hostile("mat: object")
def _(folder: Path) -> Callable[[], object]:
    return ingesting(mat_file(folder / "a.mat", matrix(3, (1, 1), b"audio", b"")))


@hostile("mat: packed opaque object")
def _(folder: Path) -> Callable[[], object]:
    packed = zlib.compress(matrix(17, (1, 1), b"audio", b""))
    return ingesting(mat_file(folder / "a.mat", struct.pack("<II", 15, len(packed)) + packed))


@hostile("mat: shape bomb")
def _(folder: Path) -> Callable[[], object]:
    lie = matrix(6, (10**6, 10**6), b"audio", element(9, b"\0" * 80))
    return ingesting(mat_file(folder / "a.mat", lie))


@hostile("mat: element beyond the file")
def _(folder: Path) -> Callable[[], object]:
    return ingesting(mat_file(folder / "a.mat", struct.pack("<II", 14, 2**31)))


@hostile("parquet: Arrow tensor extension (GHSA-mw35-8rx3-xf9r)")
def _(folder: Path) -> Callable[[], object]:
    """The metadata of Ray's tensor type, with a pickle where Ray Data 2.49 to 2.54 unpickled."""
    evil = base64.b64encode(pickle.dumps(Evil(folder / "executed")))
    plain = pa.schema(
        [
            pa.field(
                "audio",
                pa.list_(pa.float32()),
                metadata={
                    "ARROW:extension:name": "ray.data.arrow_tensor_v2",
                    "ARROW:extension:metadata": evil,
                },
            )
        ]
    )
    pq.write_table(
        pa.table([pa.array([[1.0], [2.0]], pa.list_(pa.float32()))], schema=plain), folder / "a.parquet"
    )
    return ingesting(folder / "a.parquet")


@hostile("parquet: registered Python extension")
def _(folder: Path) -> Callable[[], object]:
    plain = pa.schema(
        [
            pa.field(
                "audio",
                pa.list_(pa.float32()),
                metadata={
                    "ARROW:extension:name": "arrow.py_extension_type",
                    "ARROW:extension:metadata": pickle.dumps(Evil(folder / "executed")),
                },
            )
        ]
    )
    pq.write_table(
        pa.table([pa.array([[1.0], [2.0]], pa.list_(pa.float32()))], schema=plain), folder / "a.parquet"
    )
    return ingesting(folder / "a.parquet")


@hostile("parquet: bomb of zeros")
def _(folder: Path) -> Callable[[], object]:
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**20, np.float32)), 1024)
    schema = pa.schema([("audio", values.type)])
    with pq.ParquetWriter(folder / "a.parquet", schema, compression="zstd") as writer:
        for _ in range(80):
            writer.write_table(pa.table([values], schema=schema))
    return ingesting(folder / "a.parquet")


file_of("parquet: footer of 2 GB", "a.parquet", lambda _: b"PAR1" + struct.pack("<I", 2**31) + b"PAR1")
file_of("parquet: no footer", "a.parquet", lambda _: b"PAR1" + base64.b64encode(b"x" * 60))
file_of(
    "parquet: footer of noise",
    "a.parquet",
    lambda _: b"PAR1" + os.urandom(64) + struct.pack("<I", 64) + b"PAR1",
)


def damaged_checkpoint(name: str, change: Callable[[Path], object], *, sums: bool = True) -> None:
    """A checkpoint of another writer, whose manifest agrees with what is there."""

    @hostile(f"checkpoint: {name}")
    def make(folder: Path) -> Callable[[], object]:
        import hashlib

        path = folder / "step-00000001"
        checkpoint.save(path, {"model": {"w": torch.zeros(4)}}, {"step": 1})
        change(path)
        if sums:
            files = {
                file.name: {
                    "sha256": hashlib.sha256(data := file.read_bytes()).hexdigest(),
                    "bytes": len(data),
                }
                for file in path.iterdir()
                if file.name != "manifest.json"
            }
            (path / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
        return lambda: checkpoint.read(path)


def safetensors(head: bytes, size: int | None = None) -> Callable[[Path], object]:
    data = struct.pack("<Q", len(head) if size is None else size) + head + b"\0" * 16
    return lambda path: (path / "model.safetensors").write_bytes(data)


damaged_checkpoint("safetensors header of 2^63", safetensors(b"{}", 2**63))
damaged_checkpoint("safetensors header that is no JSON", safetensors(b"not json"))
damaged_checkpoint(
    "safetensors offsets beyond the file",
    safetensors(b'{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'),
)
damaged_checkpoint(
    "safetensors that overlap",
    safetensors(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
)
damaged_checkpoint(
    "safetensors shape that overflows",
    safetensors(b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}'),
)
damaged_checkpoint(
    "a pickle in place of tensors",
    lambda path: (path / "model.safetensors").write_bytes(pickle.dumps(Evil(path.parent / "executed"))),
)
damaged_checkpoint("JSON bomb in the state", lambda path: (path / "state.json").write_text("[" * 10**6))
damaged_checkpoint("state that is a list", lambda path: (path / "state.json").write_text("[]"))
damaged_checkpoint(
    "JSON bomb in the manifest", lambda path: (path / "manifest.json").write_text("[" * 60000), sums=False
)
damaged_checkpoint(
    "manifest of 300 MB",
    lambda path: os.truncate(path / "manifest.json", 300 * 2**20),
    sums=False,
)
damaged_checkpoint(
    "manifest that names files elsewhere",
    lambda path: (path / "manifest.json").write_text(
        '{"format": 1, "files": {"../../../../etc/passwd": {"sha256": "", "bytes": 1}}}'
    ),
    sums=False,
)


@hostile("index: JSON bomb")
def _(folder: Path) -> Callable[[], object]:
    (folder / "manifest.json").write_text('{"files": ' + "[" * 10**5)
    return lambda: open_index(folder)


@hostile("data set: shard elsewhere")
def _(folder: Path) -> Callable[[], object]:
    from tests.datasets import small_dataset

    dataset = small_dataset(folder)
    path = Path(dataset.path) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["shards"][0]["file"] = "../../../etc/passwd"
    path.write_text(json.dumps(manifest))
    return lambda: open_dataset(dataset.path)


@hostile("data set: JSON bomb")
def _(folder: Path) -> Callable[[], object]:
    (folder / "manifest.json").write_text('{"name": ' + "[" * 10**6)
    return lambda: open_dataset(folder)


@hostile("configuration: TOML bomb")
def _(folder: Path) -> Callable[[], object]:
    (folder / "a.toml").write_text("x = " + "[" * 10**5)
    return lambda: build_config(folder / "a.toml")


@hostile("configuration: number of a million digits")
def _(folder: Path) -> Callable[[], object]:
    (folder / "a.toml").write_text("[train]\nepochs = " + "9" * 10**6)
    return lambda: build_config(folder / "a.toml")


@hostile("run: JSON bomb")
def _(folder: Path) -> Callable[[], object]:
    (folder / "config.json").write_text('{"data":' * 10**5)
    return lambda: read_config(folder)


def test_there_are_at_least_forty() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("name", FILES)
def test_refused_by_name_within_two_seconds_and_256_megabytes(name: str, tmp_path: Path) -> None:
    use = FILES[name](tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        said = "nothing was refused"
        try:
            data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            limit = data + MEGABYTES * 2**20
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            began = time.process_time()
            assert callable(use)
            try:
                use()
            except (ValueError, OSError) as error:
                took = time.process_time() - began
                said = "" if took < SECONDS else f"{took:.1f} seconds"
                if not any(
                    part in str(error) for part in ("a.", "step-0000", "manifest", "config", "not an index")
                ):
                    said = f"unnamed: {type(error).__name__}: {error}"
            except BaseException as error:  # noqa: BLE001 - told to the parent, whatever it is
                said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said[:2000].encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    assert said == ""
    assert not (tmp_path / "executed").exists(), "code of the file ran"
