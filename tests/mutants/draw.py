"""Draw mutants with a seed, from each room in proportion to its number of sites, and apply them to a module's text."""

import ast
import difflib
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.mistakes.change import Place, replaced
from tests.mutants.sites import Site, sites

TOP = "(top)"
"""Room of files at the top of the package."""


class Mutant(NamedTuple):
    """A mutant, identified by the number of its site in its file."""

    file: str
    """Path relative to vitkd_ds/."""
    number: int
    where: str
    operator: str
    old: str
    """The whole expression or simple statement that contains the change."""
    new: str

    @property
    def room(self) -> str:
        """Top-level folder of the file."""
        return self.file.partition("/")[0] if "/" in self.file else TOP


def code_of(path: Path) -> dict[str, str]:
    """Return the text of each Python file below a folder."""
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*.py"))}


def allotted(sizes: dict[str, int], num: int) -> dict[str, int]:
    """Divide `num` in proportion to the sizes, by largest remainders."""
    total = sum(sizes.values())
    shares = {name: num * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(num * sizes[name] % total), name))
    for name in by_remainder[: num - sum(shares.values())]:
        shares[name] += 1
    return shares


def draw(texts: dict[str, str], num: int, seed: int) -> list[Mutant]:
    """Draw distinct mutants in random order; each compiles and changes the syntax tree."""
    generator = random.Random(seed)
    rooms = {}
    for file, text in texts.items():
        for number, site in enumerate(sites(ast.parse(text))):
            room = Mutant(file, number, "", "", "", "").room
            rooms.setdefault(room, {}).setdefault(site.operator, []).append((file, number))
    sizes = {room: sum(map(len, by_operator.values())) for room, by_operator in rooms.items()}
    drawn = []
    for room, share in allotted(sizes, min(num, sum(sizes.values()))).items():
        drawn += _draw_in_room(rooms[room], texts, share, generator)
    generator.shuffle(drawn)
    return drawn


def _draw_in_room(
    by_operator: dict[str, list[tuple[str, int]]], texts: dict[str, str], num: int, generator: random.Random
) -> list[Mutant]:
    """Draw an operator, weighted by the square root of its number of sites so that common ones do not dominate, then a
    site."""
    for found in by_operator.values():
        generator.shuffle(found)
    kept = {}
    while len(kept) < num and any(by_operator.values()):
        operators = [operator for operator, found in by_operator.items() if found]
        weights = [math.sqrt(len(by_operator[operator])) for operator in operators]
        file, number = by_operator[generator.choices(operators, weights)[0]].pop()
        changed = mutated(texts[file], number)
        if is_valid(changed, texts[file]):
            same = (file, ast.dump(ast.parse(changed)))
            kept.setdefault(same, described(texts[file], file, number))
    return [*kept.values()]


def is_valid(changed: str, text: str) -> bool:
    """Return whether a changed module compiles and has a different syntax tree."""
    try:
        compile(changed, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))


def site_of(tree: ast.Module, number: int) -> Site:
    """Return the site with this number."""
    for index, site in enumerate(sites(tree)):
        if index == number:
            return site
    raise ValueError(f"site {number} does not exist; the module has changed")


def mutated(text: str, number: int) -> str:
    """Return a module's text with the change at one site."""
    tree = ast.parse(text)
    site = site_of(tree, number)
    return replaced(text, tree, site.place, site.nodes)


def described(text: str, file: str, number: int) -> Mutant:
    """Return the mutant at a site, with the code around the change."""
    tree = ast.parse(text)
    site = site_of(tree, number)
    around = _around(site.place)
    old = _code(around)
    site.place.put(site.nodes)
    new = "" if around is site.place and not site.nodes else _code(around)
    return Mutant(file, number, site.where, site.operator, old, new)


def _around(place: Place) -> Place:
    """Return the largest expression, or the simple statement, that contains a place."""
    found = place
    parents = place.parents
    while len(parents) > 1 and isinstance(parents[-1], (ast.expr, ast.keyword, ast.comprehension, ast.Slice)):
        child = parents[-1]
        parents = parents[:-1]
        field = next(name for name, value in ast.iter_fields(parents[-1]) if _holds(value, child))
        value = getattr(parents[-1], field)
        index = value.index(child) if isinstance(value, list) else None
        found = Place(parents, field, index, None if index is None else index + 1)
    parent = found.parents[-1]
    if isinstance(parent, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr, ast.Assert)):
        return Place((ast.Module([parent], []),), "body", 0, 1)
    return found


def _holds(value: object, child: ast.AST) -> bool:
    return value is child or (isinstance(value, list) and any(each is child for each in value))


def _code(place: Place) -> str:
    return "\n".join(ast.unparse(ast.fix_missing_locations(node)) for node in place.nodes)


def diff_of(mutant: Mutant, text: str) -> str:
    """Return the change as a unified diff."""
    name = f"vitkd_ds/{mutant.file}"
    changed = mutated(text, mutant.number)
    lines: Iterable[str] = difflib.unified_diff(
        text.splitlines(), changed.splitlines(), name, f"{name} ({mutant.where or 'module'})", n=2, lineterm=""
    )
    return "\n".join(lines)
