"""What the name and context of a metric say: a loss, of the training or of an evaluation."""

from __future__ import annotations

import json
import re

_WORD = re.compile(r"[a-z]+")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LOSSES = _set("loss logloss mlogloss nll bce ce mse rmse rmsle mae mape deviance perplexity ppl")
_EVALUATION = _set(
    "val valid validation test testing eval evaluation dev holdout oob predict sanity"
)
_PARTS = _set(
    "kl kld reg regularization penalty entropy policy value critic actor adv adversarial disc"
    " discriminator gen generator aux commit commitment g d gp q"
)
"""Words of losses that grow in healthy trainings: parts of a sum, or one side of a game."""


def words(name: str) -> set[str]:
    """The words of a name, in lower case, without numbers."""
    return set(_WORD.findall(name.lower()))


def is_loss(name: str) -> bool:
    """Whether a metric is named like a loss or an error that gets smaller."""
    found = words(name)
    return not _LOSSES.isdisjoint(found) or any(word.endswith("loss") for word in found)


def is_training_loss(name: str, context: str) -> bool:
    """Whether a metric is the loss that a training makes smaller, as far as names tell.

    Parameters
    ----------
    name : str
    context : str
        JSON, as in the record.
    """
    found = words(name)
    if "cross" in found:
        found -= {"entropy"}
    if not is_loss(name) or found & (_PARTS | _EVALUATION):
        return False
    values = json.loads(context).values()
    return not any(words(str(value)) & _EVALUATION for value in values)


def is_of_machine(context: str) -> bool:
    """Whether the metric is use of processor or memory, or what recording costs."""
    return '"phase":"system"' in context or '"phase":"recording"' in context
