"""Evaluators for expressions that a model wrote. Nothing is ever executed as Python.

Text is bounded in length and alphabet before it is parsed; the syntax tree is then walked by hand,
one whitelisted node at a time, with bounds on integers, list lengths and the number of steps.
Whatever is not on the list is Refused.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_CHARACTERS = 160
MAX_INTEGER = 10**9
MAX_LENGTH = 64  # Of a list.
MAX_STEPS = 1_000  # Nodes visited in one evaluation.

_ARITHMETIC_TEXT = re.compile(r"[0-9+\-*() ]+", re.ASCII)
_LIST_TEXT = re.compile(r"[A-Za-z0-9_+\-*%/<>=!,:()\[\] ]+", re.ASCII)
_BINARY: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
_COMPARE: Mapping[type, Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_NUMBER_THEN_LETTER = re.compile(r"\b[0-9]+[A-Za-z_]")  # "1if": legal, but Python warns of it.
# A set can only be an argument here, of anything but `list`, so no result depends on its order.
_COLLECTION_CALLS: Mapping[str, Callable[[list[int] | set[int]], Any]] = {
    "sorted": sorted,
    "set": set,
    "sum": sum,
    "len": len,
    "min": min,
    "max": max,
}


class Refused(ValueError):
    """The text is not an expression of the whitelisted language, or exceeds its bounds."""


def evaluate_arithmetic(text: str) -> tuple[int, list[int]]:
    """Value of an expression of integers, + - * and brackets, and the integers it uses.

    Raises Refused for any other text.
    """
    used: list[int] = []

    def walk(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            used.append(_bounded(node.value))
            return used[-1]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
            return _bounded(_BINARY[type(node.op)](walk(node.left), walk(node.right)))
        raise Refused(f"expression: {type(node).__name__} is not allowed")

    return walk(_parse(text, _ARITHMETIC_TEXT)), used


def parse_list_program(text: str) -> ast.expr:
    """The syntax tree of a list program, for `run_list_program`. Raises Refused."""
    return _parse(text, _LIST_TEXT)


def run_list_program(program: ast.expr, x: list[int]) -> list[int]:
    """The list of ints that a parsed expression over `x` gives. Raises Refused otherwise.

    Allowed: names, integers, arithmetic (+ - * % //), comparisons, slices with step, one-loop list
    comprehensions, joining lists with +, calls of sorted sum len min max abs, and set inside one of those.
    """
    value = _ListEvaluator().evaluate(program, {"x": x})
    if not isinstance(value, list):
        raise Refused("expression: the result is not a list")
    return value


def _parse(text: str, alphabet: re.Pattern[str]) -> ast.expr:
    if len(text) > MAX_CHARACTERS or not alphabet.fullmatch(text) or _NUMBER_THEN_LETTER.search(text):
        raise Refused("expression: too long, or a character that is not allowed")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Refused("expression: not well-formed") from error


def _bounded(value: Any) -> int:
    if type(value) is not int or abs(value) > MAX_INTEGER:  # bool is not an integer here.
        raise Refused("expression: not an integer within bounds")
    return value


def _int_list(value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) > MAX_LENGTH:
        raise Refused("expression: not a list within bounds")
    return value


class _ListEvaluator:
    """Walks one syntax tree; lists hold ints only."""

    def __init__(self) -> None:
        self._steps = 0

    def evaluate(self, node: ast.expr, scope: Mapping[str, Any]) -> Any:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Refused("expression: too many steps")
        match node:
            case ast.Constant(value=value):
                return _bounded(value)
            case ast.Name(id=name) if name in scope:
                return scope[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -_bounded(self.evaluate(operand, scope))
            case ast.BinOp():
                return self._binary(node, scope)
            case ast.Compare(left=left, ops=[comparison], comparators=[right]) if type(comparison) in _COMPARE:
                a, b = self.evaluate(left, scope), self.evaluate(right, scope)
                return _COMPARE[type(comparison)](_bounded(a), _bounded(b))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
                return self._call(name, self.evaluate(argument, scope))
            case ast.List(elts=elements):
                return _int_list([_bounded(self.evaluate(e, scope)) for e in elements])
            case ast.Subscript(value=value, slice=ast.Slice() as part):
                values = _int_list(self.evaluate(value, scope))
                return values[self._slice(part, scope)]
            case ast.Subscript(value=value, slice=index):
                return self._item(_int_list(self.evaluate(value, scope)), index, scope)
            case ast.ListComp(elt=element, generators=[loop]):
                return self._comprehension(element, loop, scope)
        raise Refused(f"expression: {type(node).__name__} is not allowed")

    def _binary(self, node: ast.BinOp, scope: Mapping[str, Any]) -> Any:
        left, right = self.evaluate(node.left, scope), self.evaluate(node.right, scope)
        if isinstance(left, list) and isinstance(node.op, ast.Add):
            return _int_list(left + _int_list(right))
        if type(node.op) not in _BINARY:
            raise Refused(f"expression: {type(node.op).__name__} is not allowed")
        try:
            return _bounded(_BINARY[type(node.op)](_bounded(left), _bounded(right)))
        except ZeroDivisionError as error:
            raise Refused("expression: division by zero") from error

    def _call(self, name: str, argument: Any) -> Any:
        if name == "abs":
            return abs(_bounded(argument))
        if name not in _COLLECTION_CALLS:
            raise Refused(f"expression: calling {name!r} is not allowed")
        values = argument if isinstance(argument, set) else _int_list(argument)
        try:
            result = _COLLECTION_CALLS[name](values)
        except ValueError as error:  # min or max of an empty list.
            raise Refused(f"expression: {name} of an empty list") from error
        return result if isinstance(result, list | set) else _bounded(result)

    def _slice(self, part: ast.Slice, scope: Mapping[str, Any]) -> slice:
        ends = [
            None if end is None else _bounded(self.evaluate(end, scope)) for end in (part.lower, part.upper, part.step)
        ]
        if ends[2] == 0:
            raise Refused("expression: slice step zero")
        return slice(*ends)

    def _item(self, values: list[int], index: ast.expr, scope: Mapping[str, Any]) -> int:
        position = _bounded(self.evaluate(index, scope))
        if not -len(values) <= position < len(values):
            raise Refused("expression: index out of range")
        return values[position]

    def _comprehension(self, element: ast.expr, loop: ast.comprehension, scope: Mapping[str, Any]) -> list[int]:
        if not isinstance(loop.target, ast.Name) or loop.is_async:
            raise Refused("expression: only `for name in ...` loops are allowed")
        results = []
        for value in _int_list(self.evaluate(loop.iter, scope)):
            inner = {**scope, loop.target.id: value}
            if all(self._condition(test, inner) for test in loop.ifs):
                results.append(_bounded(self.evaluate(element, inner)))
        return results

    def _condition(self, test: ast.expr, scope: Mapping[str, Any]) -> bool:
        value = self.evaluate(test, scope)
        if type(value) not in (bool, int):
            raise Refused("expression: only comparisons and integers are conditions")
        return bool(value)
