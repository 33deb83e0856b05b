"""Group runs that differ only in their seed, and compare groups over the seeds that they have in common."""

import json
import statistics
from typing import Any, Mapping, Sequence

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.train.statistics import t_interval, t_interval_of_differences

MOST_KEYS = 6
MOST_SEEDS = 12
"""Maximum number of seeds named in a line. MOST_KEYS is the maximum number of settings or runs."""
LONGEST_VALUE = 20
"""Maximum length of a value, in characters. If a setting has a longer value, only the setting's name is shown."""
WIDEST = 120
"""Maximum length of a line, in characters."""
EQUAL = "no interval (all values are equal)"
"""Text in place of an interval of zero width."""

Group = dict[int, Result]
"""Runs with equal settings and images: seed -> run."""


def groups_of(results: Sequence[Result]) -> list[Group]:
    """Sort runs into groups that differ only in their seed. Groups are ordered by their first runs.

    Runs without an evaluation at their last step are left out, because their student had less training. If two runs
    have equal settings, images and seed, the second one is left out.
    """
    groups: list[Group] = []
    for result in (result for result in results if result.is_final):
        group = next((group for group in groups if _is_equal(_first(group), result)), None)
        if group is None:
            groups.append({result.seed: result})
        else:
            group.setdefault(result.seed, result)
    return groups


def differences_text(results: Sequence[Result], groups: Sequence[Group]) -> str:
    """Return lines that describe each group and its difference from the first group, and list the omitted runs.

    Return "" for a single run.
    """
    grouped = [result for group in groups for result in group.values()]
    lines = []
    if len(grouped) > 1:
        lines += [_group_line(number, group) for number, group in enumerate(groups, start=1)]
    for number, group in enumerate(groups[1:], start=2):
        lines += [_difference_line(number, group, groups[0]), settings_line(number, group, groups[0])]
    going = [result.name for result in results if not result.is_final]
    if going and len(results) > 1:
        lines.append(f"left out, because they have no evaluation at their last step: {_shortened(going, MOST_KEYS)}")
    if again := [result.name for result in results if result.is_final and result not in grouped]:
        lines.append(
            f"left out, because an earlier run has the same settings, images and seed: {_shortened(again, MOST_KEYS)}"
        )
    return "\n".join(lines)


def _group_line(number: int, group: Group) -> str:
    """Return a line that names a group's runs and seeds. With several seeds, it also has mean, std and interval."""
    top1 = [result.top1 for result in group.values()]
    line = f"group {number}: {_shortened([result.name for result in group.values()], 1)}, {_seeds(group)}"
    if len(top1) == 1:
        return line
    line += f": mean top-1 {statistics.mean(top1):.2f} %, std {statistics.stdev(top1):.2f}, n = {len(top1)}, "
    interval = t_interval(top1)
    return line + (f"95 % interval [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else EQUAL)


def _difference_line(number: int, group: Group, first: Group) -> str:
    """Return a line with the mean difference in top-1 from the first group, over pairs of runs with the same seed."""
    both = sorted(group.keys() & first.keys())
    differences = [group[seed].top1 - first[seed].top1 for seed in both]
    line = f"group {number} - group 1: "
    if "data.val" in _first(group).other_images(_first(first)):
        return line + "not compared: the validation images differ"
    if not both:
        return line + "not compared: no common seed"
    line += f"top-1 {statistics.mean(differences):+.2f} points, "
    if len(both) == 1:
        return line + f"{_seeds(both)}, no interval (only one seed)"
    interval = t_interval_of_differences(differences)
    line += f"95 % interval [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else EQUAL
    return line + f", n = {len(both)} pairs, {_seeds(both)}"


def settings_line(number: int, group: Group, first: Group) -> str:
    """Return a line that names the settings that differ between a group and the first group.

    The line also shows the group's value of each setting, unless the value is long. If the line would be too long, it
    names fewer settings.
    """
    own = _first(group).settings
    others = _first(first).settings
    keys = [key for key in own | others if own.get(key) != others.get(key) or (key in own) != (key in others)]
    # If only one group has a section such as teacher, name only the section. Top-level keys come first.
    keys = [key for key in keys if not any(key.startswith(f"{other}.") for other in keys)]
    words = [f"the images of {key}" for key in _first(group).other_images(_first(first))]
    words += [_with_value(key, own) for key in sorted(keys, key=lambda key: (key.count("."), key))]
    lines = [f"group {number} differs in: {_shortened(words, most)}" for most in range(MOST_KEYS, 0, -1)]
    return next((line for line in lines if len(line) <= WIDEST), lines[-1])


def _first(group: Group) -> Result:
    return next(iter(group.values()))


def _is_equal(result: Result, other: Result) -> bool:
    return result.settings == other.settings and not result.other_images(other)


def _with_value(key: str, settings: Mapping[str, Any]) -> str:
    value = settings.get(key, "")
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{key}={text}" if 0 < len(text) <= LONGEST_VALUE else key


def _seeds(seeds: Any) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {_shortened(list(map(str, sorted(seeds))), MOST_SEEDS)}"


def _shortened(words: Sequence[str], most: int) -> str:
    rest = len(words) - most
    return ", ".join(words) if rest <= 0 else f"{', '.join(words[:most])} and {rest} more"
