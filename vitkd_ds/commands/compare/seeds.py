"""Group runs that differ only in their seed, and compare groups over common seeds."""

import json
import statistics
from typing import Any, Mapping, Sequence

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.train.statistics import t_interval, t_interval_of_differences

MOST_KEYS = 6
MOST_SEEDS = 12
"""Maximum numbers of settings and seeds named in a line."""
LONGEST_VALUE = 20
"""Longest value of a setting shown in a line, in characters."""
WIDEST = 120
"""Characters per line."""
EQUAL = "all equal: n too small for an interval"
"""Text in place of an interval of zero width."""

Group = dict[int, Result]
"""Seed -> run, for runs with equal settings and images."""


def groups_of(results: Sequence[Result]) -> list[Group]:
    """Sort final results into groups, ordered by their first runs.

    Results that are not final are left out, because they had less training. If two runs have equal settings, images and
    seed, only the first one counts.
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
    """Describe each group and its difference to the first; "" if there is nothing to compare."""
    grouped = [result for group in groups for result in group.values()]
    lines = []
    if len(grouped) > 1:
        lines += [_group_line(number, group) for number, group in enumerate(groups, start=1)]
    for number, group in enumerate(groups[1:], start=2):
        lines += [_difference_line(number, group, groups[0]), settings_line(number, group, groups[0])]
    going = [result.name for result in results if not result.is_final]
    if going and len(results) > 1:
        lines.append(f"left out of groups and differences (no evaluation at the end): {_shortened(going, MOST_KEYS)}")
    if again := [result.name for result in results if result.is_final and result not in grouped]:
        lines.append(
            f"left out (an earlier run has the same settings, images and seed): {_shortened(again, MOST_KEYS)}"
        )
    return "\n".join(lines)


def _group_line(number: int, group: Group) -> str:
    """Name the runs of a group; for several seeds add mean, standard deviation and interval."""
    top1 = [result.top1 for result in group.values()]
    line = f"group {number}: {_shortened([result.name for result in group.values()], 1)}, {_seeds(group)}"
    if len(top1) == 1:
        return line
    line += f": mean top-1 {statistics.mean(top1):.2f} %, std {statistics.stdev(top1):.2f}, n = {len(top1)}, "
    interval = t_interval(top1)
    return line + (f"95 % interval [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else EQUAL)


def _difference_line(number: int, group: Group, first: Group) -> str:
    """Return the mean top-1 difference to the first group over pairs of runs with the same seed."""
    both = sorted(group.keys() & first.keys())
    differences = [group[seed].top1 - first[seed].top1 for seed in both]
    line = f"group {number} - group 1: "
    if "data.val" in _first(group).other_images(_first(first)):
        return line + "not compared: the validation images differ"
    if not both:
        return line + "not compared: no common seed"
    line += f"top-1 {statistics.mean(differences):+.2f} points, "
    if len(both) == 1:
        return line + f"{_seeds(both)}, one seed: no interval"
    interval = t_interval_of_differences(differences)
    line += f"95 % interval [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else EQUAL
    return line + f", n = {len(both)} pairs, {_seeds(both)}"


def settings_line(number: int, group: Group, first: Group) -> str:
    """Name the settings that differ between a group and the first, with the group's values if short."""
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
