"""Warn if one loss term dominates the total, or if every gradient is clipped."""

import logging
from collections.abc import Mapping

from vitkd_ds.config.losses import FACTOR
from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks

logger = logging.getLogger(__name__)

MOST_OF_TOTAL = 0.8
"""Fraction of the total above which a loss term dominates."""
PATIENCE_PART, PATIENCE_STEPS = 0.2, (50, 1000)
"""How long a finding must persist: fraction of the run, with its minimum and maximum in steps.

Warm-up is not typical of the run, so short findings do not count.
"""


def terms_of(values: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, str]:
    """Map the key of each loss term (or part of one) in a log line to the name of its weight."""
    return {key: name for key in values for name in weights if key == name or key.startswith(f"{name}_")}


def parts_of_total(values: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the contribution of each loss term (or part of one) in a log line to the total.

    It is weight x value, and x the learned factor if the terms are balanced.
    """
    return {
        key: weights[name] * values.get(FACTOR + name, 1.0) * values[key]
        for key, name in terms_of(values, weights).items()
    }


class Health:
    """Monitor of loss terms and gradient norm on rank 0, which logs each warning once."""

    def __init__(self, run: Run, *, total_steps: int) -> None:
        self._run, self._is_main = run, ranks.rank() == 0
        least, most = PATIENCE_STEPS
        self._patience = int(min(most, max(least, PATIENCE_PART * total_steps)))
        self._since: dict[str, int] = {}
        """Finding to the step since which it has persisted."""
        self._said: set[str] = set()

    def observe_step(self, step: int, grad_norm: float) -> None:
        """Check the gradient norm (before clipping) of update number `step`, counted from 1."""
        most = self._run.optim.clip_grad_norm
        if self._holds("clipping", bool(most) and grad_norm > most, step):
            logger.warning(
                "every gradient of the last %d steps was clipped (norm %.3g now, optim.clip_grad_norm %g), so its size "
                "no longer matters. Lower the weight of the largest term, or raise --optim.clip_grad_norm.",
                self._patience,
                grad_norm,
                most,
            )

    def observe_terms(self, step: int, values: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Warn if one loss term dominates the total.

        Args:
            values: a log line: each term before weighting, and the total.
            weights: weight of each term.
        """
        parts = parts_of_total(values, weights)
        for key, part in parts.items() if len(parts) > 1 else ():
            total = values["total"]
            if self._holds(key, part > MOST_OF_TOTAL * total, step):
                name = terms_of(values, weights)[key]
                field = self._run.losses.terms()[name].lowered_by.get(key, "weight")
                logger.warning(
                    "%s is %.3g of the total of %.3g, so the other terms hardly count. Lower --losses.%s.%s.",
                    key,
                    part,
                    total,
                    name,
                    field,
                )

    def _holds(self, finding: str, is_so: bool, step: int) -> bool:
        """Return whether a finding has persisted long enough and has not been reported yet."""
        if not is_so or not self._is_main:
            self._since.pop(finding, None)
            return False
        since = self._since.setdefault(finding, step)
        is_news = step - since >= self._patience and finding not in self._said
        if is_news:
            self._said.add(finding)
        return is_news
