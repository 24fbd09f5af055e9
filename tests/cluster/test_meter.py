from __future__ import annotations

import pytest
import torch

from raytrain.cluster.meter import Meter
from raytrain.cluster.step import Updated
from raytrain.types import Loss


def updated(total: float, **terms: float) -> Updated:
    loss = Loss(torch.tensor(total), {name: torch.tensor(value) for name, value in terms.items()}, None)
    return Updated(loss, torch.tensor(2.0))


def test_a_term_that_joins_between_two_readings_is_a_mean_over_the_steps_that_have_it() -> None:
    meter = Meter()
    meter.add(updated(1.0, hinge=0.5), 10)
    meter.add(updated(2.0, hinge=1.0), 10)
    meter.add(updated(6.0, hinge=1.5, late=4.0), 5)
    expected = {"loss": 3.0, "loss/hinge": 1.0, "gradient_norm": 2.0, "loss/late": 4.0}
    assert meter.means() == pytest.approx(expected)
    assert meter.rows == 25
