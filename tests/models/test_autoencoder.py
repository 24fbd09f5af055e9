from __future__ import annotations

import torch

from raytrain.config import Model
from raytrain.models.autoencoder import Decoders, Encoder, Encoders
from raytrain.models.towers import ViewInput

MODEL = Model(hidden=(6, 5), embedding=3, norm="layer", activation="tanh", dropout=0.0)
VIEW = ViewInput(torch.full((4,), 2.0), torch.full((4,), 0.5))


def test_a_hidden_value_is_the_mean() -> None:
    encoder = Encoder(VIEW, MODEL).train()
    x = torch.randn(20, 4) * 3 + 7
    clean = encoder.norm(encoder.scaling(x))
    kept = torch.ones(20, 4, dtype=torch.bool)
    kept[:, 2] = False
    at_mean = x.clone()
    at_mean[:, 2] = x[:, 2].mean()
    expected = encoder.norm(encoder.scaling(x)).clone()
    expected[:, 2] = ((at_mean - x.mean(0)) / x.std(0))[:, 2]
    torch.testing.assert_close(encoder.code(clean, kept), encoder.trunk(expected), rtol=1e-5, atol=1e-6)


def test_layers_are_the_papers() -> None:
    kinds = [type(layer).__name__ for layer in Encoder(VIEW, MODEL).trunk]
    assert kinds == ["Linear", "LayerNorm", "Tanh", "Dropout", "Linear", "LayerNorm"]
    assert not any(p.requires_grad for p in Encoder(VIEW, MODEL).norm.parameters())


def test_decoders_read_their_source_and_write_their_target() -> None:
    decoders = Decoders(
        [("audio", "visual"), ("visual", "visual")], {"audio": 4, "visual": 9}, code=5, width=3, dropout=0.0
    )
    codes = {"audio": torch.randn(2, 5), "visual": torch.randn(2, 5)}
    made = decoders(codes)
    assert {pair: x.shape for pair, x in made.items()} == {
        ("audio", "visual"): (2, 9),
        ("visual", "visual"): (2, 9),
    }
    changed = decoders({**codes, "audio": torch.randn(2, 5)})
    assert torch.equal(changed["visual", "visual"], made["visual", "visual"])
    assert not torch.equal(changed["audio", "visual"], made["audio", "visual"])


def test_compiling_the_towers_compiles_what_training_calls() -> None:
    towers = Encoders({"audio": VIEW}, MODEL)
    assert towers["audio"].trunk._compiled_call_impl is None
    towers.compile()
    assert towers["audio"].trunk._compiled_call_impl is not None
