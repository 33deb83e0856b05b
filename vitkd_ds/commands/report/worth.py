"""Gain from the teacher: top-1 with a teacher minus top-1 without a teacher."""

import statistics
from collections.abc import Sequence

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.compare.seeds import Group, groups_of
from vitkd_ds.commands.report.answers import Answers, are_comparable
from vitkd_ds.commands.report.classes import difference
from vitkd_ds.config import teachers
from vitkd_ds.config.teachers import of_any
from vitkd_ds.train.statistics import t_interval_of_differences

UNKNOWN = "unknown"
BELONGS = {"recipe", "teacher", "losses"}
"""Sections of settings that are not named as further differences, because they belong to the teacher."""


def worth(results: Sequence[Result], answers: Sequence[Answers | None]) -> tuple[str, str]:
    """Return the number and the text of a tile with the gain from the teacher.

    The first run's group (runs that differ only in their seed) is compared with another group. Exactly one of the two
    groups has a teacher. If several groups are possible, the one with the fewest other differences is taken. With
    several common seeds, the interval is computed from the pairs of runs with the same seed. With one common seed, it
    is computed from the images of the only pair of runs.

    Args:
        results: runs of the report.
        answers: predictions of each run, or None.
    """
    groups = groups_of([result for result in results if result.evaluation])
    own = next((group for group in groups if results[0] in group.values()), {})
    others = [group for group in groups if _is_counterpart(own, group)]
    if not own:
        return UNKNOWN, "gain from the teacher: this run is not finished"
    if not others:
        kind = "without a teacher (--teacher none)" if _has_teacher(own) else "with a teacher"
        return UNKNOWN, f"gain from the teacher: add to this report a finished run {kind} with the same seed"
    other = min(others, key=lambda group: len(_also_differ(own, group)))
    taught, plain = (own, other) if _has_teacher(own) else (other, own)
    seeds = sorted(own.keys() & other.keys())
    differences = [taught[seed].top1 - plain[seed].top1 for seed in seeds]
    interval = t_interval_of_differences(differences) if len(seeds) > 1 else None
    about = f"mean over {len(seeds)} seeds"
    if interval is None:
        of_run = {result.name: each for result, each in zip(results, answers)}
        interval = _over_images(*(of_run[group[seeds[0]].name] for group in (taught, plain)))
        about = f"{'from the images, ' if interval else ''}seed {seeds[0]}"
        differences = differences[:1]
    bounds = f", 95 % interval [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    also = _also_differ(own, other)
    rest = f". The runs also differ in {', '.join(also[:3])}{', ...' * (len(also) > 3)}" if also else ""
    words = f"gain from the teacher: top-1 compared with {plain[seeds[0]].name}{bounds}, {about}{rest}"
    return f"{statistics.mean(differences):+.2f} points", words


def _is_counterpart(own: Group, other: Group) -> bool:
    """Return whether exactly one group has a teacher, and both have a common seed and the same validation images."""
    seeds = own.keys() & other.keys()
    is_same = not any("data.val" in own[seed].other_images(other[seed]) for seed in seeds)
    return bool(seeds) and is_same and _has_teacher(own) != _has_teacher(other)


def _has_teacher(group: Group) -> bool:
    return bool(teachers.read(next(iter(group.values())).config["run"]))


def _also_differ(own: Group, other: Group) -> list[str]:
    """Return the names of the settings that differ between two groups, except those in the groups BELONGS."""
    one, two = next(iter(own.values())), next(iter(other.values()))
    keys = sorted(one.settings.keys() | two.settings.keys())
    keys = [key for key in keys if of_any(key).partition(".")[0] not in BELONGS]
    different = [key for key in keys if one.settings.get(key) != two.settings.get(key)]
    return different + [f"the images of {key}" for key in one.other_images(two)]


def _over_images(own: Answers | None, other: Answers | None) -> tuple[float, float] | None:
    if own is None or other is None or not are_comparable(own, other):
        return None
    found = difference(own.right(), other.right())
    return found["low"], found["high"]
