"""Find a piece of Python code inside a named function by its syntax tree, and replace it.

A pattern is Python code. It matches equal syntax trees, so layout, comments and quotes do not matter. `...` matches any
expression, or any number of neighbouring arguments, elements or statements. `**...` does so for keyword arguments and
items of a dict. `name=value` matches an assignment or a keyword argument.
"""

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
ARROW = " =>"


class Place(NamedTuple):
    """Neighbouring nodes of a tree: `parent.field[first:last]`, or `parent.field` if that is not a list."""

    parents: tuple[ast.AST, ...]
    """Nodes from the module to the one with the field."""
    field: str
    first: int | None
    last: int | None

    @property
    def nodes(self) -> list:
        """Nodes at this place."""
        value = getattr(self.parents[-1], self.field)
        return [value] if self.first is None else value[self.first : self.last]

    def put(self, nodes: list) -> None:
        """Replace the nodes; an empty body becomes `pass`."""
        parent = self.parents[-1]
        if self.first is None:
            setattr(parent, self.field, nodes[0] if nodes else None)
            return
        value = getattr(parent, self.field)
        value[self.first : self.last] = nodes
        if not value and self.field == "body":
            value.append(ast.Pass())


def places(parents: tuple[ast.AST, ...]) -> Iterator[Place]:
    """Yield the places of all descendants of the last node, without the insides of nested functions and classes."""
    for field, value in ast.iter_fields(parents[-1]):
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(node, ast.AST):
                first, last = (index, index + 1) if isinstance(value, list) else (None, None)
                yield Place(parents, field, first, last)
                if not isinstance(node, SCOPE):
                    yield from places((*parents, node))


def scopes(tree: ast.Module) -> Iterator[tuple[str, tuple[ast.AST, ...]]]:
    """Yield the module (as "") and each function and class: its qualified name and the nodes that lead to it."""
    waiting = [("", (tree,))]
    while waiting:
        name, parents = waiting.pop(0)
        yield name, parents
        for place in places(parents):
            [node] = place.nodes
            if isinstance(node, SCOPE):
                waiting.append((f"{name}.{node.name}".lstrip("."), (*place.parents, node)))


def _is_any(node: object) -> bool:
    """Return whether a pattern's node is `...`."""
    if isinstance(node, (ast.Expr, ast.keyword)) and getattr(node, "arg", None) is None:
        node = node.value
    return isinstance(node, ast.Constant) and node.value is ...


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield the fields to compare, with a dict's items as pairs."""
    if isinstance(node, ast.Dict):
        yield "items", [ast.keyword(key, value) for key, value in zip(node.keys, node.values)]
    else:
        yield from ((name, value) for name, value in ast.iter_fields(node) if name not in ("kind", "type_comment"))


def _match(pattern: object, found: object) -> list | None:
    """Return the nodes matched by each `...` of the pattern, in order, or None if the pattern does not match."""
    if isinstance(pattern, list):
        return _match_list(pattern, found) if isinstance(found, list) else None
    if not isinstance(pattern, ast.AST):
        return [] if type(pattern) is type(found) and pattern == found else None
    if _is_any(pattern) and isinstance(pattern, ast.expr) and isinstance(found, ast.expr):
        return [[found]]
    if type(pattern) is not type(found):
        return None
    bound = []
    for (_, one), (_, other) in zip(_fields(pattern), _fields(found)):
        inner = _match(one, other)
        if inner is None:
            return None
        bound += inner
    return bound


def _match_list(pattern: list, found: list) -> list | None:
    if not pattern:
        return None if found else []
    if _is_any(pattern[0]):
        for length in range(len(found) + 1):
            rest = _match_list(pattern[1:], found[length:])
            if rest is not None:
                return [found[:length], *rest]
        return None
    first = _match(pattern[0], found[0]) if found else None
    rest = None if first is None else _match_list(pattern[1:], found[1:])
    return None if rest is None else first + rest


def _fill(node: object, bound: list) -> object:
    """Return the new nodes, with each `...` replaced by the nodes that it matched in the old ones."""
    if isinstance(node, list):
        filled = []
        for each in node:
            filled += bound.pop(0) if _is_any(each) else [_fill(each, bound)]
        return filled
    if not isinstance(node, ast.AST):
        return node
    if _is_any(node):
        return bound.pop(0)[0]
    if isinstance(node, ast.Dict):
        items = []
        for key, value in zip(node.keys, node.values):
            items += bound.pop(0) if key is None and _is_any(value) else [_fill(ast.keyword(key, value), bound)]
        return ast.Dict([item.arg for item in items], [item.value for item in items])
    for name, value in ast.iter_fields(node):
        setattr(node, name, _fill(value, bound))
    return node


def _patterns(text: str) -> list[list]:
    """Parse a snippet in all possible ways: as an expression, a keyword argument, or statements."""
    ways = []
    statements = ast.parse(text).body
    if len(statements) == 1 and isinstance(statements[0], ast.Expr):
        return [[statements[0].value]]
    if len(statements) == 1 and isinstance(statements[0], ast.Assign):
        [target, *others] = statements[0].targets
        if isinstance(target, ast.Name) and not others:
            ways.append([ast.keyword(target.id, statements[0].value)])
    return [*ways, statements]


def find(tree: ast.Module, where: str, old: str) -> list[tuple[Place, list]]:
    """Return each match of the pattern in a function, class or module, with the nodes matched by its `...`."""
    found = []
    patterns = _patterns(old)
    for parents in [parents for name, parents in scopes(tree) if name == where]:
        for place in places(parents):
            for pattern in patterns:
                if len(pattern) > 1 and place.first is None:
                    continue
                whole = place if len(pattern) == 1 else place._replace(last=place.first + len(pattern))
                bound = _match(pattern, whole.nodes)
                if bound is not None and len(whole.nodes) == len(pattern):
                    found.append((whole, bound))
    return found


def changed(text: str, where: str, old: str, new: str) -> str:
    """Return a module's text with `old` replaced by `new`; ValueError unless `old` matches exactly once."""
    tree = ast.parse(text)
    found = find(tree, where, old)
    if len(found) != 1:
        raise ValueError(f"{where or 'the module'} has {len(found)} matches of {old!r}, expected 1")
    [(place, bound)] = found
    ways = _patterns(new) if new else [[]]
    nodes = ways[-1]
    if place.nodes and isinstance(place.nodes[0], ast.keyword):
        nodes = ways[0]
    elif isinstance(place.nodes[0], ast.stmt) and nodes and isinstance(nodes[0], ast.expr):
        nodes = [ast.Expr(nodes[0])]
    if isinstance(place.nodes[0], ast.expr) and not (nodes and isinstance(nodes[0], ast.expr)):
        # A call used as a statement is replaced as a statement.
        place = Place(place.parents[:-1], *_place_in(place.parents[-2], place.parents[-1]))
    return replaced(text, tree, place, _fill(nodes, bound))


def _place_in(parent: ast.AST, child: ast.AST) -> tuple[str, int | None, int | None]:
    for field, value in ast.iter_fields(parent):
        if value is child:
            return field, None, None
        if isinstance(value, list) and child in value:
            return field, value.index(child), value.index(child) + 1
    raise ValueError(f"{child} is not a child of {parent}")


def replaced(text: str, tree: ast.Module, place: Place, nodes: list) -> str:
    """Replace the nodes at a place in the tree and return the new text, changing as little of the text as possible."""
    spans = [(place.nodes, nodes)]
    spans += [([node], [node]) for node in reversed(place.parents[1:]) if isinstance(node, (ast.stmt, ast.expr))]
    spots = [_span(olds, text) for olds, _ in spans]
    place.put(nodes)
    want = ast.dump(tree)
    for spot, (_, news) in zip(spots, spans):
        try:
            written = _spliced(text, spot, news)
            if written is not None and ast.dump(ast.parse(written)) == want:
                return written
        except (SyntaxError, ValueError):
            pass
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _span(nodes: list, text: str) -> tuple[int, int, str] | None:
    """Return the first and last byte of the nodes in the source, and their indentation."""
    if not nodes or not hasattr(nodes[0], "lineno"):
        return None
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    decorators = getattr(nodes[0], "decorator_list", [])
    line = min([nodes[0].lineno, *(each.lineno for each in decorators)])
    column = nodes[0].col_offset
    return starts[line - 1] + column, starts[nodes[-1].end_lineno - 1] + nodes[-1].end_col_offset, " " * column


def _spliced(text: str, span: tuple[int, int, str] | None, nodes: list) -> str | None:
    if span is None:
        return None
    first, last, indent = span
    said = [ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))) for node in nodes]
    if len(nodes) == 1 and isinstance(
        nodes[0], (ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Lambda)
    ):
        said = [f"({said[0]})"]
    written = f"\n{indent}".join("\n".join(said).split("\n"))
    data = text.encode()
    return (data[:first] + written.encode() + data[last:]).decode()
