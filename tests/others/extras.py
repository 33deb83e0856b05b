"""Settings of a loss from another package; its parts that import torch are in `extras_part.py`."""

from dataclasses import dataclass

from vitkd_ds.config.term import Needs, Term


@dataclass(frozen=True)
class PullTerm(Term, place="losses.pull"):
    """Mean squared difference of the logits."""

    module = "extras_part:Pull"
    needs = Needs(logits=True)
