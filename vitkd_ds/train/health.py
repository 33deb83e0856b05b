"""Warn if one loss term dominates the total, or if every gradient is clipped."""

import logging
from collections.abc import Mapping

from vitkd_ds.config.losses import FACTOR
from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks

logger = logging.getLogger(__name__)

MOST_OF_TOTAL = 0.8
"""A loss term dominates if its contribution exceeds this fraction of the total loss."""
PATIENCE_PART, PATIENCE_STEPS = 0.2, (50, 1000)
"""Time that a condition must hold before a warning: a fraction of the run, with lower and upper limits in steps.

A condition that holds only briefly causes no warning, because warm-up is not typical of a run.
"""


def terms_of(values: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, str]:
    """Return a dict from the keys of a log line to the names of the loss terms that they belong to.

    A key is the term's name, or starts with it if the term logs several values (such as `vitkd_mimic`). Keys that
    belong to no term are left out.
    """
    return {key: name for key in values for name in weights if key == name or key.startswith(f"{name}_")}


def parts_of_total(values: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Return how much each value of a loss term in a log line contributes to the total loss, by key.

    The contribution is weight * value. If the terms are balanced, it is multiplied by the learned factor.
    """
    return {
        key: weights[name] * values.get(FACTOR + name, 1.0) * values[key]
        for key, name in terms_of(values, weights).items()
    }


class Health:
    """Monitor of loss terms and gradient norms. It logs each warning only once and only on rank 0."""

    def __init__(self, run: Run, *, total_steps: int) -> None:
        self._run, self._is_main = run, ranks.rank() == 0
        least, most = PATIENCE_STEPS
        self._patience = int(min(most, max(least, PATIENCE_PART * total_steps)))
        self._since: dict[str, int] = {}
        """For each condition that holds now, the first step of the period in which it has held."""
        self._said: set[str] = set()

    def observe_step(self, step: int, grad_norm: float) -> None:
        """Warn if all recent gradients were clipped.

        Args:
            step: number of the update, counted from 1.
            grad_norm: gradient norm of this update before clipping.
        """
        most = self._run.optim.clip_grad_norm
        if self._holds("clipping", bool(most) and grad_norm > most, step):
            logger.warning(
                "every gradient of the last %d steps was clipped (norm %.3g now, optim.clip_grad_norm %g), so only the "
                "directions of gradients matter. Lower the weight of the largest term, or raise "
                "--optim.clip_grad_norm.",
                self._patience,
                grad_norm,
                most,
            )

    def observe_terms(self, step: int, values: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Warn if one loss term dominates the total.

        Args:
            step: number of completed updates.
            values: values of a log line; loss terms are not weighted, except in `total`.
            weights: weight of each loss term, by name.
        """
        parts = parts_of_total(values, weights)
        for key, part in parts.items() if len(parts) > 1 else ():
            total = values["total"]
            if self._holds(key, part > MOST_OF_TOTAL * total, step):
                name = terms_of(values, weights)[key]
                field = self._run.losses.terms()[name].lowered_by.get(key, "weight")
                logger.warning(
                    "%s contributes %.3g to the total loss of %.3g, so the other terms hardly count. Lower "
                    "--losses.%s.%s.",
                    key,
                    part,
                    total,
                    name,
                    field,
                )

    def _holds(self, finding: str, is_so: bool, step: int) -> bool:
        """Return whether a condition has held long enough and has not been reported yet."""
        if not is_so or not self._is_main:
            self._since.pop(finding, None)
            return False
        since = self._since.setdefault(finding, step)
        is_news = step - since >= self._patience and finding not in self._said
        if is_news:
            self._said.add(finding)
        return is_news
