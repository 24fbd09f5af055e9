"""The oldest versions that are safe and right, checked before a run starts."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

FLOORS = {
    "ray": "2.59",  # token authentication of local clusters; no code from Parquet schemas (CVE-2026-41486)
    "torch": "2.10",  # weights_only and what was found in it
    "pyarrow": "14.0.1",  # no code from IPC and Parquet files (CVE-2023-47248)
}


def check_versions() -> None:
    """Raises ValueError that names the package, what is installed and what is needed."""
    for name, floor in FLOORS.items():
        found = version(name)
        if Version(found) < Version(floor):
            raise ValueError(
                f"{name} {found} is installed, {floor} or newer is needed (older ones have known holes); "
                f"pip install '{name}>={floor}'"
            )
