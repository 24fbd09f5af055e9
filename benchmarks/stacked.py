"""Whether training several small models at once in one process pays: K stacked models over K models one by one.

    python benchmarks/stacked.py [--short]

The same arithmetic both ways: two towers with one hidden layer, audio 128 and visual 1024, InfoNCE, batch 400, fused
AdamW, float32, one thread, CPU time, interleaved in one process.  One by one each model is a module; stacked, a layer
of all models is one batched product and every model's loss is of its own rows.  Above 1 stacking is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZES, EMBEDDING, ROWS, TEMPERATURE = (128, 1024), 64, 400, 0.1


def one_by_one(models: int, width: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of each model in turn; returns the losses."""
    towers, optimizers = [], []
    for _ in range(models):
        pair = nn.ModuleList(
            nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, EMBEDDING)) for size in SIZES
        )
        towers.append(pair)
        optimizers.append(torch.optim.AdamW(pair.parameters(), fused=True))

    def step(audio: Tensor, visual: Tensor) -> Tensor:
        losses = []
        for k, (pair, optimizer) in enumerate(zip(towers, optimizers, strict=True)):
            optimizer.zero_grad(set_to_none=True)
            a, v = (F.normalize(tower(x[k]), dim=1) for tower, x in zip(pair, (audio, visual), strict=True))
            logits = a @ v.T / TEMPERATURE
            own = torch.arange(len(logits))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def stacked(models: int, width: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of all models at once; returns the losses."""
    shapes = [(size, width) for size in SIZES] + [(width, EMBEDDING)] * len(SIZES)
    weights = [nn.Parameter(torch.randn(models, i, o) / i**0.5) for i, o in shapes]
    biases = [nn.Parameter(torch.zeros(models, 1, o)) for _, o in shapes]
    optimizer = torch.optim.AdamW([*weights, *biases], fused=True)

    def step(audio: Tensor, visual: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        embedded = []
        for i, x in enumerate((audio, visual)):
            hidden = torch.baddbmm(biases[i], x, weights[i]).relu()  # [k n width]
            embedded.append(F.normalize(torch.baddbmm(biases[2 + i], hidden, weights[2 + i]), dim=2))
        logits = embedded[0] @ embedded[1].transpose(1, 2) / TEMPERATURE  # [k n n]
        both = torch.diagonal(logits.log_softmax(2) + logits.log_softmax(1), dim1=1, dim2=2)
        losses = -both.mean(dim=1) / 2
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    return step


def speedup(models: int, width: int, rounds: int, steps: int) -> list[float]:
    """CPU time of one by one over stacked, by round."""
    generator = torch.Generator().manual_seed(0)
    audio, visual = (torch.randn(models, ROWS, size, generator=generator) for size in SIZES)
    ways = one_by_one(models, width), stacked(models, width)
    for step in ways:
        step(audio, visual)
    found = []
    for _ in range(rounds):
        seconds = []
        for step in ways:
            start = time.process_time()
            for _ in range(steps):
                step(audio, visual)
            seconds.append(time.process_time() - start)
        found.append(seconds[0] / seconds[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--short", action="store_true", help="fewer rounds and widths")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, float | list[float] | int] = {"models": options.models}
    for width in (16, 256) if options.short else (16, 64, 256, 512, 1024):
        ratios = speedup(options.models, width, *((3, 1) if options.short else (7, 2)))
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"width {width}: {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)
        result[f"width_{width}"] = round(middle, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
