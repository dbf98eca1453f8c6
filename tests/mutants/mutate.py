"""Every small change of a module that its tests should notice, found in its syntax tree.

What nothing computes with is left alone: docstrings, annotations, decorators, assertions, strings.  So is what would
only be a TypeError, which any test finds that comes by.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
FUNCTIONS = {"any": "all", "all": "any", "min": "max", "max": "min", "sorted": "list", "reversed": "list"}
EMPTY = {"list": "[]", "dict": "{}", "set": "set()", "tuple": "()", "frozenset": "frozenset()"}
"""What a function that returns one of these could return instead."""


@dataclass(frozen=True, order=True)
class Mutant:
    path: str
    """Below the tree."""
    line: int
    column: int
    kind: str
    source: str
    """The whole module, changed."""

    def diff(self, original: str) -> tuple[list[str], list[str]]:
        """The lines that are gone and those that came, without indent."""
        lines = list(difflib.unified_diff(original.splitlines(), self.source.splitlines(), lineterm="", n=0))[2:]
        gone = [line[1:].strip() for line in lines if line.startswith("-")]
        came = [line[1:].strip() for line in lines if line.startswith("+")]
        return gone, came


def find_mutants(path: str, tree: Path) -> list[Mutant]:
    """All of one module, by place; none that does not parse or is the same program."""
    text = (tree / path).read_text()
    found: dict[str, Mutant] = {}
    same = ast.dump(ast.parse(text))
    for node, kind, new in _Finder(ast.parse(text)).changes():
        source = _replaced(text, node, new)
        try:
            is_other = ast.dump(ast.parse(source)) != same
        except SyntaxError:
            continue
        if is_other:
            found.setdefault(source, Mutant(path, node.lineno, node.col_offset, kind, source))
    return sorted(found.values())


Located = ast.expr | ast.stmt
Change = tuple[Located, str, str]
"""The node to replace, what kind of change it is, and the new text."""


class _Finder:
    def __init__(self, module: ast.Module) -> None:
        self._module = module

    def changes(self) -> Iterator[Change]:
        for statement in self._module.body:
            yield from self._visit(statement, None, self._module)

    def _visit(self, node: ast.AST, function: ast.FunctionDef | None, parent: ast.AST) -> Iterator[Change]:
        match node:
            case ast.Assert() | ast.JoinedStr() | ast.Subscript(slice=ast.Tuple()):
                return
            case ast.keyword(arg="strict") | ast.Call(func=ast.Name("assert_never")):
                return  # assertions, too
            case ast.Tuple() if isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Tuple):
                for element in node.elts:
                    yield from self._visit(element, function, node)
                return
            case ast.BinOp(op=ast.BitOr()) if function is None:
                return  # a union of types
            case ast.Assign(targets=[ast.Name(id="__slots__")]):
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
        if isinstance(node, ast.expr):
            for new in _expressions(node):
                text = ast.unparse(new)
                is_within = isinstance(parent, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.Compare)
                yield node, type(node).__name__, f"({text})" if is_within and _is_compound(new) else text
        if isinstance(node, ast.stmt):
            for text in _statements(node, function):
                yield node, type(node).__name__, text
        test = getattr(node, "test", None)
        if isinstance(node, ast.If | ast.IfExp) and isinstance(test, ast.expr):
            for text in ("True", "False"):
                yield test, "condition", text
        if isinstance(node, ast.comprehension):
            for condition in node.ifs:
                yield condition, "filter", "True"
        inner = node if isinstance(node, ast.FunctionDef) else function
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self._visit(child, inner, node)


def _expressions(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left, ops, comparators):
            for place, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:place], other(), *ops[place + 1 :]], comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for place in range(len(values)):
                rest = [*values[:place], *values[place + 1 :]]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
            if value > 0:
                yield ast.Constant(value - 1)
        case ast.BinOp(left, op, right) if type(op) in OPERATORS and not _has_text(node):
            yield ast.BinOp(left, OPERATORS[type(op)](), right)
        case ast.Call(function, arguments, keywords):
            if isinstance(function, ast.Name) and function.id in FUNCTIONS:
                kept = [] if FUNCTIONS[function.id] == "list" else keywords
                yield ast.Call(ast.Name(FUNCTIONS[function.id]), arguments, kept)
            for place in range(0 if _is_symmetric(function) else len(arguments) - 1):
                first, second = arguments[place : place + 2]
                if not any(isinstance(each, ast.Starred | ast.Constant) for each in (first, second)):
                    swapped = [*arguments[:place], second, first, *arguments[place + 2 :]]
                    yield ast.Call(function, swapped, keywords)
        case ast.Tuple(elements, ast.Load()) | ast.List(elements, ast.Load()) | ast.Set(elements):
            for place in range(len(elements)):
                rest = [*elements[:place], *elements[place + 1 :]]
                if rest:
                    yield ast.Set(rest) if isinstance(node, ast.Set) else type(node)(rest, ast.Load())


def _statements(node: ast.stmt, function: ast.FunctionDef | None) -> Iterator[str]:
    match node:
        case ast.Expr(ast.Call(func=ast.Name("assert_never"))):
            return
        case ast.Expr(ast.Call()) | ast.Raise() | ast.Delete():
            yield "pass"
        case ast.Expr(ast.Yield() | ast.YieldFrom()):
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"
        case ast.AugAssign(target, op, value):
            yield "pass"
            if type(op) in OPERATORS:
                yield ast.unparse(ast.AugAssign(target, OPERATORS[type(op)](), value))
        case ast.Continue():
            yield "break"
        case ast.Break():
            yield "continue"
        case ast.Return(ast.expr() as value) if function is not None:
            for other in _other_values(function.returns, value):
                yield f"return {other}"


def _other_values(returns: ast.expr | None, value: ast.expr) -> Iterator[str]:
    """What the function's type lets it return instead."""
    match returns:
        case ast.Name("bool"):
            yield f"not ({ast.unparse(value)})"
        case ast.Name("int"):
            yield f"({ast.unparse(value)}) + 1"
        case ast.Name(name) | ast.Subscript(ast.Name(name)) if name in EMPTY:
            yield EMPTY[name]
        case ast.BinOp(left, ast.BitOr(), ast.Constant(None)):
            yield "None"
            yield from _other_values(left, value)


def _is_symmetric(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in ("min", "max", "zip")


def _has_text(node: ast.expr) -> bool:
    """Of which only + makes sense."""
    return any(isinstance(part, ast.Constant) and isinstance(part.value, str | bytes) for part in ast.walk(node))


def _is_compound(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.Compare | ast.IfExp | ast.Lambda)


def _replaced(text: str, node: Located, new: str) -> str:
    lines = text.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    source = b"".join(lines)
    return (source[:start] + new.encode() + source[end:]).decode()
