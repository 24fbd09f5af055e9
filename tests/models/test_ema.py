from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import nn

from raytrain.models.ema import Ema, Follower


class Network(nn.Module):
    """Parameters, buffers of floats and of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)


def shifted_by_one(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


@pytest.mark.parametrize(("buffers", "moved"), [("averaged", 0.1), ("copied", 1.0)])
def test_the_slow_module_moves_by_its_decay(buffers: Literal["averaged", "copied"], moved: float) -> None:
    fast = Network()
    slow = copy.deepcopy(fast)
    before = snapshot(slow)
    shifted_by_one(fast)
    Follower(slow, fast, buffers=buffers).move(0.9)
    for name, _ in slow.named_parameters():
        torch.testing.assert_close(slow.get_parameter(name), before[name] + 0.1)
    for name in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(slow.get_buffer(name), before[name] + moved)
    assert slow.get_buffer("norm.num_batches_tracked") == 1  # whole numbers have no average


def test_a_tensor_that_was_replaced_is_followed() -> None:
    fast = Network()
    slow = copy.deepcopy(fast)
    follower = Follower(slow, fast, buffers="averaged")
    fast.norm.running_mean = torch.full((3,), 10.0)
    slow.norm.running_mean = torch.zeros(3)
    follower.move(0.9)
    torch.testing.assert_close(slow.norm.running_mean, torch.ones(3))


def test_a_copy_of_both_follows_by_itself() -> None:
    fast = Network()
    slow = copy.deepcopy(fast)
    before = snapshot(slow)
    other_fast, other_slow, other = copy.deepcopy((fast, slow, Follower(slow, fast, buffers="averaged")))
    shifted_by_one(other_fast)
    other.move(0.5)
    torch.testing.assert_close(other_slow.linear.weight, before["linear.weight"] + 0.5)
    assert all(torch.equal(x, before[name]) for name, x in slow.state_dict().items())


def test_a_shared_parameter_moves_once() -> None:
    fast = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fast[1].weight = fast[0].weight
    slow = copy.deepcopy(fast)
    before = slow[0].weight.detach().clone()
    follower = Follower(slow, fast, buffers="averaged")
    with torch.no_grad():
        fast[0].weight.add_(1.0)
    follower.move(0.5)
    torch.testing.assert_close(slow[1].weight, before + 0.5)


def test_an_average_holds_the_buffers_of_its_source() -> None:
    source = Network()
    ema = Ema(source, 0.75)
    before = snapshot(ema.module)
    shifted_by_one(source)
    ema.update()
    torch.testing.assert_close(ema.state_dict()["norm.running_mean"], source.norm.running_mean)
    torch.testing.assert_close(ema.state_dict()["norm.weight"], before["norm.weight"] + 0.25)
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
