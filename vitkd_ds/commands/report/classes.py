"""Student and teacher class by class, the difference to another run, and which classes are taken for which."""

import numpy as np

from vitkd_ds.commands.report.answers import MOST_CLASSES, Answers
from vitkd_ds.commands.report.html import Html, element, joined, section, table
from vitkd_ds.train.statistics import paired_interval, wilson_interval

MOST_BARS = 8
"""Classes in each list of those that gained and lost most."""


def per_class(name: str, own: Answers, other_name: str, other: Answers | None) -> Html:
    """The section of classes: a table of all, and with another run those in which this one is better and worse."""
    counts, right = own.by_class(np.ones(len(own.label), bool)), own.by_class(own.right())
    header = ["class", "images", "student top-1 %", "95 % interval"]
    columns = [own.classes, counts, *_percent_and_interval(right, counts)]
    if own.teacher is not None:
        header += ["teacher top-1 %", "agreement %"]
        columns += [_percent(own.by_class(own.right("teacher")), counts)]
        columns += [_percent(own.by_class(own.student == own.teacher), counts)]
    parts = []
    if other is not None:
        gained, lost = own.by_class(own.right() & ~other.right()), own.by_class(~own.right() & other.right())
        header += [f"difference to {other_name}, points", "95 % interval"]
        columns += list(zip(*map(_difference, counts, gained, lost)))
        parts = _helped_and_hurt((name, other_name), (own, other), counts, gained, lost)
    # Classes without an image have no numbers, and no row.
    rows = [row for row, count in zip(zip(*columns), counts) if count]
    about = f"The evaluation at step {own.step:,}: {len(own.label):,} images."
    controls = element("div", element("input", type="search", placeholder="Filter by name", aria_label="Filter classes",
                                      data_filter="classes-table"), class_="controls")  # fmt: skip
    whole = table(header, rows, class_="sorts", id="classes-table").replace('class="scroll"', 'class="scroll tall"')
    empty = len(own.classes) - len(rows)
    note = [element("p", f"{empty} classes have no validation image.", class_="note")] if empty else []
    title = element("h3", "All classes")
    hint = element("p", "A click on a heading sorts.", class_="note")
    return section("classes", "Classes", element("p", about), *parts, title, controls, Html(whole), hint, *note)


def _percent(part: np.ndarray, counts: np.ndarray) -> list[str]:
    return [f"{100 * some / count:.2f}" if count else "-" for some, count in zip(part, counts)]


def _percent_and_interval(right: np.ndarray, counts: np.ndarray) -> tuple[list[str], list[str]]:
    bounds = [wilson_interval(int(count), int(some)) if count else (0, 0) for some, count in zip(right, counts)]
    return _percent(right, counts), [f"[{low:.1f}, {high:.1f}]" for low, high in bounds]


def _difference(count: int, gained: int, lost: int) -> tuple[Html, str]:
    if not count:
        return element("td", "-"), "-"
    points, (low, high) = 100 * (gained - lost) / count, paired_interval(int(count), int(gained), int(lost))
    # Coloured only where the interval leaves out 0.
    sign = "up" if low > 0 else "down" if high < 0 else ""
    return element("td", f"{points:+.2f}" if points else "0.00", class_=sign), f"[{low:+.1f}, {high:+.1f}]"


def _helped_and_hurt(
    names: tuple[str, str], both: tuple[Answers, Answers], counts: np.ndarray, gained: np.ndarray, lost: np.ndarray
) -> list[Html]:
    """The difference over all images, and bars of the classes with the largest differences of either sign."""
    (name, other_name), (own, other) = names, both
    total, plus, minus = len(own.label), int(gained.sum()), int(lost.sum())
    low, high = paired_interval(total, plus, minus)
    sentence = (
        f"On the same images {name} (step {own.step:,}) answers {plus:,} right that {other_name} (step {other.step:,}) "
        f"answers wrong, and {minus:,} the other way round: {100 * (plus - minus) / total:+.2f} points, 95 % interval "
        f"[{low:+.2f}, {high:+.2f}] over these images. It says nothing of other seeds, which would move both runs."
    )
    # A class without an image gained and lost nothing.
    points = np.divide(100 * (gained - lost), counts, out=np.zeros(len(counts)), where=counts > 0)
    order, most = np.argsort(-points, kind="stable"), max(1e-9, np.abs(points).max())
    lists = []
    for title, chosen, sign in (
        ("Helped most", [k for k in order if points[k] > 0][:MOST_BARS], "up"),
        ("Hurt most", [k for k in order[::-1] if points[k] < 0][:MOST_BARS], "down"),
    ):
        bars = [
            _bar(own.classes[k], points[k], most, int(counts[k]), int(gained[k]), int(lost[k]), sign) for k in chosen
        ]
        shown = element("div", *bars, class_="bars") if bars else element("p", "No class.", class_="soft")
        lists.append(element("div", element("h3", title), shown))
    num_classes = int((counts > 0).sum())
    chance = (
        f"Points to {other_name}, and the 95 % interval over the class's images. The largest of {num_classes:,} "
        "differences are in part the luckiest; pale bars, whose interval holds 0, are no finding."
    )
    return [
        element("p", sentence, id="difference"),
        element("div", *lists, class_="pair"),
        element("p", chance, class_="note"),
    ]


def _bar(name: str, points: float, most: float, count: int, gained: int, lost: int, sign: str) -> Html:
    low, high = paired_interval(count, gained, lost)
    sign += " unclear" * (low <= 0 <= high)
    bar = element("i", class_=sign, style=f"--part:{100 * abs(points) / most:.1f}")
    return joined((
        element("span", name), element("span", bar), element("span", f"{points:+.1f} [{low:+.0f}, {high:+.0f}]"),
    ))  # fmt: skip


def confusion(own: Answers) -> Html:
    """The section of the confusion matrix of the student: a row for each true class, in counts of images."""
    labels, counts = own.confusion()
    is_whole = len(labels) == len(own.classes)
    rows_total = np.maximum(1, counts.sum(1))
    names = [own.classes[label] for label in labels]
    heads = [element("span", name, title=name) for name in (*names, *(() if is_whole else ("another",)))]
    rows = []
    for row, name in enumerate(names):
        cells = [
            _count_cell(int(count), count / rows_total[row], f"{name}, answered {head}", is_hit=row == column)
            for column, (count, head) in enumerate(zip(counts[row], (*names, "another class")))
            if column < len(heads)
        ]
        rows.append((name, *cells))
    about = "A row for each class of the images, a column for each answer of the student, in images."
    if not is_whole:
        about += f" Of {len(own.classes):,} classes the {MOST_CLASSES} that are most often taken for each other."
    return section("confusion", "Confusion matrix", element("p", about), table(("", *heads), rows, class_="confusion"))


def _count_cell(count: int, part: float, title: str, *, is_hit: bool) -> Html:
    if not count:
        return element("td", "")
    shade = f"--part:{0.12 + 0.5 * part:.3f}"
    return element("td", count, class_="hit" if is_hit else "miss", style=shade, title=f"{title}: {count}")
