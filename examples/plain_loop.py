"""A training loop of one's own: logistic regression by hand, with two seeds."""

from __future__ import annotations

import math
import random

import tachograph


def train(seed: int, learning_rate: float = 0.5, epochs: int = 30) -> float:
    """Fit points that lie around two centres; return the final loss."""
    generator = random.Random(seed)
    points = [
        (generator.gauss(2 * label - 1, 1), generator.gauss(1 - 2 * label, 1), label)
        for label in (0, 1) * 100
    ]
    weights = [0.0, 0.0, 0.0]
    loss = math.inf
    params = {"seed": seed, "learning_rate": learning_rate, "epochs": epochs}
    with tachograph.start_run(name=f"by hand, seed {seed}", params=params) as run:
        for epoch in range(epochs):
            loss = 0.0
            gradient = [0.0, 0.0, 0.0]
            for x, y, label in points:
                p = 1 / (1 + math.exp(-(weights[0] * x + weights[1] * y + weights[2])))
                loss -= math.log(p if label else 1 - p) / len(points)
                for i, value in enumerate((x, y, 1.0)):
                    gradient[i] += (p - label) * value / len(points)
            weights = [w - learning_rate * g for w, g in zip(weights, gradient, strict=True)]
            run.log({"loss": loss}, step=epoch, epoch=epoch)
        run.log_table(
            "weights", [{"name": n, "value": w} for n, w in zip("xyb", weights, strict=True)]
        )
    return loss


if __name__ == "__main__":
    for chosen in (1, 2):
        train(chosen)
