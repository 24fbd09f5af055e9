from __future__ import annotations

import pytest

from raytrain.cluster import local_ray


def test_a_ray_of_our_own_is_no_cluster_though_its_workers_know_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(local_ray.LOCAL, raising=False)
    assert not local_ray.on_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert local_ray.on_cluster()
    with local_ray._this_machine_only():
        assert not local_ray.on_cluster()
    assert local_ray.on_cluster()
