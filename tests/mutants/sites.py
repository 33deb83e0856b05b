"""Mutation sites: every place of a module that a mutant can change, and its code in the mutant.

Type annotations, imports, `__all__` and prose have no sites. Prose is docstrings, f-strings, strings with spaces, and
the arguments of `raise`, `logging`, `warnings` and `print`.
"""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.mistakes.change import Place, places, scopes

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
EXTREMES = {"max": "min", "amax": "amin", "argmax": "argmin", "maximum": "minimum"}
EXTREMES |= {low: high for high, low in EXTREMES.items()}
STRUCTURAL = ("property", "setter", "classmethod", "staticmethod", "dataclass", "overload")
"""Decorators that are never dropped, because nothing works without them."""
SPEAKING = re.compile(r"(logger|logging|log|warnings)\.\w+|print")
"""Functions with prose as arguments."""
ANNOTATIONS = ("annotation", "returns", "type_params", "type_comment")
WORD = re.compile(r"[\w./:=+-]+")


class Site(NamedTuple):
    """A possible mutant of a module."""

    where: str
    """Qualified name of the function or class; "" for the module."""
    operator: str
    place: Place
    nodes: list
    """Nodes at this place in the mutant; empty for a deletion."""


def sites(tree: ast.Module) -> Iterator[Site]:
    """Yield all sites of a module, always in the same order."""
    for where, parents in scopes(tree):
        for place in places(parents):
            if not _is_left_alone(place):
                for operator, at, nodes in _changes(place):
                    name = getattr(at.parents[-1], "name", "") if operator == "drop decorator" else ""
                    yield Site(f"{where}.{name}".strip("."), operator, at, nodes)


def _is_left_alone(place: Place) -> bool:
    """Return whether the place is in prose, an annotation, an import or `__all__`."""
    [node] = place.nodes
    chain = [*place.parents[1:], node]
    if place.field in ANNOTATIONS or isinstance(node, (ast.Import, ast.ImportFrom, ast.expr_context)):
        return True
    if _is_speaking(node):
        return True
    for parent, child in zip(place.parents, chain):
        if any(getattr(parent, field, None) is child for field in ANNOTATIONS):
            return True
        if isinstance(parent, (ast.Raise, ast.JoinedStr)):
            return True
        if _is_speaking(parent):
            return True
        if isinstance(parent, ast.Assign) and ast.unparse(parent.targets[0]) == "__all__":
            return True
        if isinstance(parent, ast.Expr) and isinstance(child, ast.Constant):
            return True
    return False


def _is_speaking(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and bool(SPEAKING.fullmatch(ast.unparse(node.func)))


def _changes(place: Place) -> Iterator[tuple[str, Place, list]]:
    [node] = place.nodes
    if isinstance(node, ast.expr):
        yield from ((name, place, [new]) for name, new in _of_expression(node, place))
    elif isinstance(node, ast.stmt):
        yield from ((name, place, new) for name, new in _of_statement(node, place))
        yield from _inside_statement(node, place)
    if isinstance(node, ast.Slice):
        yield from ((name, place, [new]) for name, new in _of_slice(node))


def _of_expression(node: ast.expr, place: Place) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                yield "comparison", ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "drop not" if isinstance(node.op, ast.Not) else "drop minus", node.operand
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    if place.field == "test" and not isinstance(node, ast.Constant):
        yield "negate test", ast.UnaryOp(ast.Not(), node)


def _of_constant(node: ast.Constant) -> Iterator[tuple[str, ast.expr]]:
    value = node.value
    if isinstance(value, bool):
        yield "bool", ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield "number + 1", ast.Constant(value + 1)
        yield "number - 1", ast.Constant(value - 1) if value >= 1 else ast.UnaryOp(ast.USub(), ast.Constant(1 - value))
    elif isinstance(value, str) and WORD.fullmatch(value):
        yield "string", ast.Constant(f"{value}_")


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    args = node.args
    for index, keyword in enumerate(node.keywords):
        others = (node.keywords[:index], node.keywords[index + 1 :])
        if keyword.arg is not None:
            yield "drop keyword", ast.Call(node.func, args, [*others[0], *others[1]])
            if not isinstance(keyword.value, ast.Constant):
                constant = ast.keyword(keyword.arg, ast.Constant(0))
                yield "constant argument", ast.Call(node.func, args, [*others[0], constant, *others[1]])
    for index, arg in enumerate(args):
        if not isinstance(arg, (ast.Constant, ast.Starred, ast.GeneratorExp)):
            constant = [*args[:index], ast.Constant(0), *args[index + 1 :]]
            yield "constant argument", ast.Call(node.func, constant, node.keywords)
        pair = args[index : index + 2]
        if len(pair) == 2 and not any(isinstance(each, ast.Starred) for each in pair):
            swapped = [*args[:index], *reversed(pair), *args[index + 2 :]]
            yield "swap arguments", ast.Call(node.func, swapped, node.keywords)
    if isinstance(node.func, ast.Name) and node.func.id in EXTREMES:
        yield "max/min", ast.Call(ast.Name(EXTREMES[node.func.id], ast.Load()), args, node.keywords)
    elif isinstance(node.func, ast.Attribute) and node.func.attr in EXTREMES:
        func = ast.Attribute(node.func.value, EXTREMES[node.func.attr], ast.Load())
        yield "max/min", ast.Call(func, args, node.keywords)
    if isinstance(node.func, ast.Name) and node.func.id == "range" and args:
        start = [_plus(args[0], 1), *args[1:]] if len(args) > 1 else [ast.Constant(1), args[0]]
        stop = [_plus(args[0], -1)] if len(args) == 1 else [args[0], _plus(args[1], -1), *args[2:]]
        yield "range", ast.Call(node.func, start, [])
        yield "range", ast.Call(node.func, stop, [])


def _plus(node: ast.expr, number: int) -> ast.expr:
    return ast.BinOp(node, ast.Add() if number > 0 else ast.Sub(), ast.Constant(abs(number)))


def _of_slice(node: ast.Slice) -> Iterator[tuple[str, ast.expr]]:
    lower = ast.Constant(1) if node.lower is None else _plus(node.lower, 1)
    upper = ast.UnaryOp(ast.USub(), ast.Constant(1)) if node.upper is None else _plus(node.upper, -1)
    yield "slice", ast.Slice(lower, node.upper, node.step)
    yield "slice", ast.Slice(node.lower, upper, node.step)


def _of_statement(node: ast.stmt, place: Place) -> Iterator[tuple[str, list]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        if not _is_speaking(node.value) or ast.unparse(node.value.func) == "print":
            yield "drop call", []
    elif isinstance(node, ast.With) and not any(item.optional_vars for item in node.items):
        yield "drop with", node.body
    elif isinstance(node, ast.Return):
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "return None", [ast.Return(ast.Constant(None))]
        if not isinstance(place.parents[-1], (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield "drop return", [ast.Pass()]
    elif isinstance(node, (ast.Break, ast.Continue)):
        yield "drop break", [ast.Pass()]
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "arithmetic", [ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)]


def _inside_statement(node: ast.stmt, place: Place) -> Iterator[tuple[str, Place, list]]:
    """Yield changes inside a statement: to its bodies and decorators."""
    parents = (*place.parents, node)
    if isinstance(node, ast.If):
        if not isinstance(node.body[0], (ast.Pass, ast.Return, ast.Continue, ast.Break)) or len(node.body) > 1:
            yield "drop body", Place(parents, "body", 0, len(node.body)), [ast.Pass()]
        if node.orelse and not isinstance(node.orelse[0], ast.If):
            yield "drop else", Place(parents, "orelse", 0, len(node.orelse)), []
    for index, decorator in enumerate(getattr(node, "decorator_list", [])):
        if not re.search("|".join(STRUCTURAL), ast.unparse(decorator)):
            yield "drop decorator", Place(parents, "decorator_list", index, index + 1), []
