"""Small faults that can be put into a Python file, one at a time.

A fault replaces one expression or statement in the text of the file and leaves everything else as it is,
so that its diff is one line. Types, docstrings, messages, logging and imports are left alone: a fault there
changes no result.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
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
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.MatMult: ast.Mult,
}
_COMMUTING = {"min", "max", "np.minimum", "np.maximum"}
# Calls that only say something.
_TALK = {"log", "logging", "warnings", "print", "_log"}


@dataclass(frozen=True)
class Fault:
    """One replacement in a file.

    Attributes:
        file: path below the repository.
        line: line of the replaced code, from 1.
        kind: what was done.
        begin, end: positions in the UTF-8 text.
        new: what stands there instead.
        source: the text of the whole file.
    """

    file: str
    line: int
    kind: str
    begin: int
    end: int
    new: str
    source: str

    @property
    def old(self) -> str:
        """The replaced code."""
        return self.source.encode()[self.begin : self.end].decode()

    @property
    def text(self) -> str:
        """The file with the fault in it."""
        whole = self.source.encode()
        return (whole[: self.begin] + self.new.encode() + whole[self.end :]).decode()

    @property
    def changes(self) -> bool:
        """Whether the file says anything else with the fault in it."""
        return ast.dump(ast.parse(self.text)) != ast.dump(ast.parse(self.source))

    @property
    def diff(self) -> str:
        """A unified diff without context."""
        before, after = self.source.splitlines(), self.text.splitlines()
        lines = list(difflib.unified_diff(before, after, self.file, self.file, "", "", n=0, lineterm=""))
        return "\n".join(lines[2:])


def faults(file: str, source: str) -> list[Fault]:
    """Return every fault of a file, in the order of its lines; a few change nothing (`Fault.changes`)."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, kind, new in _walk(ast.parse(source)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        text = ast.unparse(new)
        if isinstance(node, ast.expr):
            text = f"({text})"
        found.append(Fault(file, node.lineno, kind, begin, end, text, source))
    return sorted(found, key=lambda fault: (fault.begin, fault.end, fault.kind, fault.new))


_Site = tuple["ast.expr | ast.stmt", str, "ast.AST"]


def _walk(node: ast.AST) -> Iterator[_Site]:
    """Yield (node, kind, replacement) of all that may be replaced below a node."""
    if isinstance(node, ast.Raise):
        yield node, "dropped", ast.Pass()
        return  # what it says is a message
    if isinstance(node, ast.expr):
        yield from _expression(node)
    elif isinstance(node, ast.stmt):
        yield from _statement(node)
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _left_alone(node, name, child):
                yield from _walk(child)


def _left_alone(parent: ast.AST, field: str, child: ast.AST) -> bool:
    if field in ("annotation", "returns", "decorator_list", "bases", "type_comment"):
        return True
    if isinstance(child, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return True
    if isinstance(child, ast.Expr) and (isinstance(child.value, ast.Constant) or _talks(child.value)):
        return True
    if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
        return True
    if isinstance(child, ast.Assign | ast.AnnAssign) and isinstance(parent, ast.Module):
        return _is_type(child.value)
    return False


def _is_type(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Subscript) or (
        isinstance(value, ast.Call) and "TypeVar" in ast.unparse(value)
    )


def _talks(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[0] in _TALK


def _expression(node: ast.expr) -> Iterator[_Site]:
    match node:
        case ast.Compare(left, [operator, *rest], comparators):
            for other in _COMPARISONS[type(operator)]:
                yield node, "comparison", ast.Compare(left, [other(), *rest], comparators)
        case ast.BinOp(left, operator, right) if type(operator) in _ARITHMETIC and not _is_text(left):
            yield node, "arithmetic", ast.BinOp(left, _ARITHMETIC[type(operator)](), right)
        case ast.BoolOp(operator, values):
            joined = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield node, "and/or", ast.BoolOp(joined, values)
        case ast.UnaryOp(ast.Not(), operand):
            yield node, "negation", operand
        case ast.UnaryOp(ast.USub(), operand) if not isinstance(operand, ast.Constant):
            yield node, "sign", operand
        case ast.IfExp(test, body, orelse):
            yield node, "condition", ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Constant(bool(value)):
            yield node, "constant", ast.Constant(not value)
        case ast.Constant(int(value)) | ast.Constant(float(value)):
            yield node, "constant", ast.Constant(value + 1)
            yield node, "constant", ast.Constant(value - 1)
        case ast.Subscript(value, ast.Slice(lower, upper, step)):
            one = ast.Constant(1)
            for low, high in (
                (lower and ast.BinOp(lower, ast.Add(), one), upper),
                (lower, upper and ast.BinOp(upper, ast.Sub(), one)),
            ):
                yield node, "slice", ast.Subscript(value, ast.Slice(low, high, step), ast.Load())
        case ast.Call(function, [first, second, *rest], keywords) if not _talks(node) and not _commutes(node):
            if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                yield node, "arguments", ast.Call(function, [second, first, *rest], keywords)


def _commutes(call: ast.Call) -> bool:
    """Return whether the order of the arguments makes no difference."""
    return ast.unparse(call.func) in _COMMUTING


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _statement(node: ast.stmt) -> Iterator[_Site]:
    match node:
        case ast.If(test) | ast.While(test):
            if isinstance(test, ast.expr) and not isinstance(test, ast.Constant):
                yield test, "condition", ast.UnaryOp(ast.Not(), test)
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
            yield node, "dropped", ast.Pass()
        case ast.Assign([ast.Subscript() | ast.Attribute()], _):
            yield node, "dropped", ast.Pass()
