from __future__ import annotations

import torch

from raytrain.models.masking import kept_features


def test_share_is_the_ratio_and_independent_of_row_and_feature() -> None:
    hidden = (~kept_features(torch.arange(2000), 300, ratio=0.2, seed=(3, 5))).double()
    assert abs(hidden.mean().item() - 0.2) < 4 * (0.16 / 600000) ** 0.5
    assert (hidden.mean(0) - 0.2).abs().max() < 5 * (0.16 / 2000) ** 0.5
    assert (hidden.mean(1) - 0.2).abs().max() < 5 * (0.16 / 300) ** 0.5
    correlation = torch.corrcoef(hidden[:, :40].T) - torch.eye(40)
    assert correlation.abs().max() < 5 / 2000**0.5
    neighbours = torch.corrcoef(hidden[:40]) - torch.eye(40)
    assert neighbours.abs().max() < 5 / 300**0.5


def test_a_row_has_its_mask_in_any_order_and_company() -> None:
    whole = kept_features(torch.arange(50), 7, ratio=0.5, seed=(1, 2))
    some = torch.tensor([49, 3, 17])
    assert torch.equal(kept_features(some, 7, ratio=0.5, seed=(1, 2)), whole[some])
    assert torch.equal(kept_features(torch.arange(50), 4, ratio=0.5, seed=(1, 2)), whole[:, :4])


def test_every_word_of_the_seed_matters() -> None:
    rows = torch.arange(20)
    masks = [kept_features(rows, 30, ratio=0.5, seed=seed) for seed in [(0, 0), (0, 1), (1, 0), (2**63, 0)]]
    for i in range(4):
        for j in range(i):
            assert 0.4 < (masks[i] == masks[j]).double().mean() < 0.6


def test_features_of_one_word_are_independent() -> None:
    """Four features share 64 bits: any two of them are hidden together as often as chance has it."""
    hidden = ~kept_features(torch.arange(40000), 4, ratio=0.3, seed=(9,))
    for i in range(4):
        for j in range(i):
            together = (hidden[:, i] & hidden[:, j]).double().mean().item()
            assert abs(together - 0.09) < 4 * (0.09 * 0.91 / 40000) ** 0.5


def test_limits() -> None:
    rows = torch.arange(100)
    assert kept_features(rows, 50, ratio=0.0, seed=(0,)).all()
    assert not kept_features(rows, 50, ratio=1.0, seed=(0,)).any()
