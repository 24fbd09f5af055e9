""".npy files, one or a folder of them, memory-mapped.  Objects would be unpickled: refused from the header."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import numpy as np

from raytrain.data.errors import BadData, HostileFile
from raytrain.data.readers.protocol import ArrayInfo, check_name, check_size, rows_first

Stream = io.BufferedIOBase | IO[bytes]


MAX_HEADER_BYTES = 2**20
"""numpy takes memory for what a header claims before it looks at what is there."""


class Header:
    """Shape, type and order of a .npy, from its header alone."""

    def __init__(self, stream: Stream, *, where: str) -> None:
        try:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            elif version == (2, 0):
                length = stream.read(4)
                if int.from_bytes(length, "little") > MAX_HEADER_BYTES:
                    raise HostileFile(
                        f"{where}: its header claims {int.from_bytes(length, 'little'):,} bytes; refused"
                    )
                header = io.BytesIO(length + stream.read(int.from_bytes(length, "little")))
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(header)
            else:
                raise BadData(f"{where}: .npy version {version} is not known; save it with numpy.save")
        except HostileFile:
            raise
        except ValueError as error:
            raise BadData(f"{where}: no readable .npy: {error}") from error
        if dtype.hasobject:
            raise HostileFile(
                f"{where}: holds Python objects, which would be unpickled; refused: save numbers or text"
            )
        if dtype.kind not in "biufUS":
            raise HostileFile(
                f"{where}: holds {dtype}: records and complex numbers are not features; refused"
            )
        if any(extent < 0 for extent in shape):
            raise HostileFile(f"{where}: declares the shape {shape}; refused")
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype = dtype
        self.fortran: bool = fortran
        self.offset = stream.tell()

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


class NpyReader:
    """A folder of .npy (arrays by file name) or one such file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
        if not files:
            raise BadData(f"{path} is a folder without .npy files")
        self._files = {file.stem: file for file in files}
        self._headers: dict[str, Header] = {}
        for name, file in self._files.items():
            check_name(path, name)
            with file.open("rb") as stream:
                header = Header(stream, where=file.name)
            stored = file.stat().st_size - header.offset
            if header.nbytes > stored:
                raise HostileFile(
                    f"{file.name}: declares {header.shape} {header.dtype} = {header.nbytes:,} bytes, but holds "
                    f"{stored:,}: truncated, or a shape bomb; refused"
                )
            check_size(path, ArrayInfo(name, header.shape, header.dtype), stored=stored)
            self._headers[name] = header

    def arrays(self) -> dict[str, ArrayInfo]:
        return {name: ArrayInfo(name, header.shape, header.dtype) for name, header in self._headers.items()}

    def read(self, name: str, start: int, stop: int, *, axis: int = 0) -> np.ndarray:
        header = self._headers[name]
        if not header.nbytes:
            return np.empty((0,) * len(header.shape), header.dtype)
        values = np.memmap(
            self._files[name],
            header.dtype,
            mode="r",
            offset=header.offset,
            shape=header.shape,
            order="F" if header.fortran else "C",
        )
        window = (slice(None),) * axis + (slice(start, stop),)
        return rows_first(np.array(values[window]), axis)

    def sources(self) -> list[Path]:
        return list(self._files.values())

    def close(self) -> None:
        """Nothing stays open between reads."""
