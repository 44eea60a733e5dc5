"""All rules of one run: which are on, which of them have said enough, what explains what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from tachograph.health.findings import Finding
from tachograph.health.gradients import DeadUnits, ExplodingGradient, VanishingGradient
from tachograph.health.losses import Divergence, Loss, LossRule, Plateau
from tachograph.health.names import is_of_machine, is_training_loss
from tachograph.health.not_finite import RULE as NAN
from tachograph.health.not_finite import MetricsNotFinite, TensorsNotFinite, finite_column
from tachograph.health.steps import Assembler, TensorStep
from tachograph.health.weights import FrozenWeights, LargeUpdates, SmallUpdates
from tachograph.records import MetricBlock
from tachograph.settings import HealthConfig
from tachograph.tensors.records import TensorKey

GRADIENT_NORM = "gradient_norm"
MOST = 3
"""Events of one rule in one run."""
_MOST_NAMES = 10_000

_EXPLAINS = {
    "vanishing_gradient": {"dead_units", "frozen_weights", "update_ratio_low", "plateau"},
    "dead_units": {"frozen_weights", "update_ratio_low", "plateau"},
    "update_ratio_low": {"frozen_weights", "plateau"},
    "update_ratio_high": {"exploding_gradient", "vanishing_gradient", "dead_units"},
    "divergence": {"exploding_gradient", "plateau"},
}
"""What follows from what."""

_AFTER_NAN = {*HealthConfig._fields} - {"nan"}

_AGAIN = {"dead_units", "frozen_weights", "nan"}
"""Rules that may tell of further tensors and metrics."""


class TensorRule(Protocol):
    """Looks at the tensors of a step."""

    name: str

    def look(self, step: TensorStep) -> Finding | None:
        """Look at one step."""


class RunRules:
    """The rules that watch one run of one process, and what they have found.

    Parameters
    ----------
    settings : HealthConfig
    attempt : int, default 1
        Later ones go on with a trained model, whose loss need not improve.
    rank : int, default 0
        Others than 0 record the parts of tensors that they alone hold; of these only NaN counts.
    """

    def __init__(self, settings: HealthConfig, attempt: int = 1, rank: int = 0) -> None:
        self._settings = settings
        self._attempt = attempt
        self._told: dict[str, int] = {}
        self._quiet: set[str] = set()
        self._norms: dict[str, ExplodingGradient] = {}  # where they are metrics, by context
        self._tensor_rules: list[TensorRule] = [*self._chosen_tensor_rules()]
        if rank:
            self._tensor_rules = [rule for rule in self._tensor_rules if rule.name == NAN]
        self._spoilt_at: int | None = None  # where the loss was not finite any more
        self._metric_rule = MetricsNotFinite() if settings.nan else None
        self._losses: dict[tuple[str, str], Loss] = {}
        self._assembler = Assembler()

    # ------------------------------------------------------------------ what was recorded

    def points(self, block: MetricBlock) -> list[Finding]:
        """Look at points of one series."""
        context = block.series.context
        if is_of_machine(context):
            return []
        found = []
        for at, name in enumerate(block.series.names):
            if name == GRADIENT_NORM:
                found += self._look_at_norms(block, at)
            elif (loss := self._loss(name, context)) is not None:
                for told in loss.add(finite_column(block, at)):
                    found += self._admit(told)
        if self._metric_rule is not None and (finding := self._metric_rule.look(block)):
            found += self._admit(finding)
            if finding.level == "error":  # the first of many
                self._metric_rule, self._spoilt_at = None, finding.step
                self._quiet |= {Divergence.name, Plateau.name}
        return found

    def tensors(self, keys: Sequence[TensorKey], step: int | None, numbers: Any) -> list[Finding]:
        """Look at statistics of tensors at one step; see `Assembler.add`."""
        return self._look(self._assembler.add(keys, step, numbers))

    def flush(self) -> list[Finding]:
        """Look at the last step, which nothing has followed."""
        return self._look(self._assembler.flush())

    @property
    def waits(self) -> bool:
        """Whether there is such a step."""
        return self._assembler.waits

    # ------------------------------------------------------------------ inside

    def _chosen_tensor_rules(self) -> Iterator[TensorRule]:
        """Causes before what follows from them."""
        chosen, patience = self._settings, self._settings.patience
        if chosen.nan:
            yield TensorsNotFinite()
        if chosen.vanishing_gradient is not False:
            yield VanishingGradient(chosen.vanishing_gradient, patience)
        if chosen.dead_units is not False:
            yield DeadUnits(chosen.dead_units, patience)
        if chosen.update_ratio_high is not False:
            yield LargeUpdates(chosen.update_ratio_high)
        if chosen.exploding_gradient is not False:
            yield ExplodingGradient(chosen.exploding_gradient)
        if chosen.frozen_weights is not False:
            yield FrozenWeights(chosen.frozen_weights)
        if chosen.update_ratio_low is not False:
            yield SmallUpdates(chosen.update_ratio_low)

    def _loss_rules(self, name: str, context: str) -> Iterator[LossRule]:
        if self._settings.divergence is not False:
            yield Divergence(name, context, self._settings.divergence)
        if self._settings.plateau is not False and self._attempt == 1:
            yield Plateau(name, context, self._settings.plateau)

    def _loss(self, name: str, context: str) -> Loss | None:
        """The loss of that name, None where it is none or nothing is left to say of it."""
        mark = name, context
        loss = self._losses.get(mark)
        if loss is None:
            if len(self._losses) >= _MOST_NAMES:  # names that never come back
                self._losses.clear()
            is_one = is_training_loss(name, context)
            rules = self._loss_rules(name, context) if is_one else ()
            loss = self._losses[mark] = Loss(rules)
        loss.rules = [rule for rule in loss.rules if rule.name not in self._quiet]
        return loss if loss.rules else None

    def _look_at_norms(self, block: MetricBlock, at: int) -> list[Finding]:
        """Look at the norm that a callback has recorded, which makes that of the tensors spare."""
        factor, context = self._settings.exploding_gradient, block.series.context
        if factor is False or ExplodingGradient.name in self._quiet:
            return []
        if context not in self._norms:
            self._norms[context] = ExplodingGradient(factor)
            spare = ExplodingGradient.name
            self._tensor_rules = [rule for rule in self._tensor_rules if rule.name != spare]
        add = self._norms[context].add
        found = [finding for step, norm in finite_column(block, at) if (finding := add(step, norm))]
        return [admitted for finding in found for admitted in self._admit(finding)]

    def _look(self, step: TensorStep | None) -> list[Finding]:
        if step is None or not self._tensor_rules:
            return []
        import numpy as np

        found: list[Finding] = []
        with np.errstate(all="ignore"):
            sound = step.is_sound and not self._is_spoilt(step)
            for rule in self._tensor_rules:
                if (sound or rule.name == NAN) and rule.name not in self._quiet:
                    finding = rule.look(step)
                    found += self._admit(finding) if finding is not None else ()
        if any(finding.rule == NAN for finding in found):  # metrics follow
            self._metric_rule = None
            self._quiet |= {NAN, *_AFTER_NAN}
        self._tensor_rules = [r for r in self._tensor_rules if r.name not in self._quiet]
        return found

    def _is_spoilt(self, step: TensorStep) -> bool:
        """Whether a loss that was not finite explains all that is wrong with a step."""
        if self._spoilt_at is None:
            return False
        return step.step is None or step.step >= self._spoilt_at

    def _admit(self, finding: Finding) -> list[Finding]:
        """The finding, unless enough has been said or something else explains it."""
        rule = finding.rule
        if rule in self._quiet:
            return []
        self._told[rule] = self._told.get(rule, 0) + 1
        if rule not in _AGAIN or self._told[rule] >= MOST:
            self._quiet.add(rule)
        self._quiet |= _EXPLAINS.get(rule, set())
        return [finding]
