"""Settings of a loss of another package; what needs torch is in `extras_part.py`."""

from dataclasses import dataclass

from vitkd_ds.config.term import Needs, Term


@dataclass(frozen=True)
class PullTerm(Term, place="losses.pull"):
    """Squared differences of the logits."""

    module = "extras_part:Pull"
    needs = Needs(logits=True)
