"""Warn of a run that learns otherwise than its settings suggest: a term drowns the others, or clipping always acts."""

import logging
from collections.abc import Mapping

from vitkd_ds.config.losses import FACTOR
from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks

logger = logging.getLogger(__name__)

MOST_OF_TOTAL = 0.8
"""Part of the total above which a term leaves too little to the others."""
PATIENCE_PART, PATIENCE_STEPS = 0.2, (50, 1000)
"""Part of the run, and least and most steps, for which it must hold without a break: a warm-up is not typical."""


def terms_of(values: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, str]:
    """Key of each term, or part of a term, in a log line -> name of the weight that it has in the total."""
    return {key: name for key in values for name in weights if key == name or key.startswith(f"{name}_")}


def parts_of_total(values: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """What each term, or part of a term, in a log line adds to the total: weight x value, x the factor if the terms are
    balanced."""
    return {
        key: weights[name] * values.get(FACTOR + name, 1.0) * values[key]
        for key, name in terms_of(values, weights).items()
    }


class Health:
    """Watch the terms and the gradient norm on rank 0, and warn once of each finding."""

    def __init__(self, run: Run, *, total_steps: int) -> None:
        self._run, self._is_main = run, ranks.rank() == 0
        least, most = PATIENCE_STEPS
        self._patience = int(min(most, max(least, PATIENCE_PART * total_steps)))
        self._since: dict[str, int] = {}
        """Finding -> step since which it holds without a break."""
        self._said: set[str] = set()

    def observe_step(self, step: int, grad_norm: float) -> None:
        """Look at the gradient norm, before clipping, of the update that made `step` updates."""
        most = self._run.optim.clip_grad_norm
        if self._holds("clipping", bool(most) and grad_norm > most, step):
            logger.warning(
                "every gradient of the last %d steps was clipped (norm %.3g now, optim.clip_grad_norm %g), so that its "
                "size no longer counts: lower the weight of the largest term, or raise --optim.clip_grad_norm",
                self._patience,
                grad_norm,
                most,
            )

    def observe_terms(self, step: int, values: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Look at the unweighted terms in a log line, and their total, given the weight of each term."""
        parts = parts_of_total(values, weights)
        for key, part in parts.items() if len(parts) > 1 else ():
            total = values["total"]
            if self._holds(key, part > MOST_OF_TOTAL * total, step):
                name = terms_of(values, weights)[key]
                field = self._run.losses.terms()[name].lowered_by.get(key, "weight")
                logger.warning(
                    "%s is %.3g of the total of %.3g, and the other terms hardly count: lower --losses.%s.%s",
                    key,
                    part,
                    total,
                    name,
                    field,
                )

    def _holds(self, finding: str, is_so: bool, step: int) -> bool:
        """Whether a finding has held for so many steps, and was not said yet."""
        if not is_so or not self._is_main:
            self._since.pop(finding, None)
            return False
        since = self._since.setdefault(finding, step)
        is_news = step - since >= self._patience and finding not in self._said
        if is_news:
            self._said.add(finding)
        return is_news
