"""Resamples as Ray tasks give the bits that threads give."""

from __future__ import annotations

import numpy as np
import pytest

from raytrain.graph.accumulator import MomentAccumulator
from raytrain.graph.dependency import class_dependency
from raytrain.graph.planted import soft_labels


@pytest.mark.ray
@pytest.mark.slow
def test_ray_and_threads_agree():
    import ray

    from raytrain.cluster.graph_bootstrap import RayExecutor

    world = soft_labels(4, 1500, world="events", nuisance=0.0, seed=0)
    moments = MomentAccumulator(4)
    moments.update(world.audio, world.visual, world.labels, np.arange(1500))
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        spread = class_dependency(moments, bootstraps=4, executor=RayExecutor())
    finally:
        if started:
            ray.shutdown()
    here = class_dependency(moments, bootstraps=4)
    assert spread.direction_frequency.tobytes() == here.direction_frequency.tobytes()
    assert spread.effects.tobytes() == here.effects.tobytes()
