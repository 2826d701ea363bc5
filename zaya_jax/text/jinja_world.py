"""The Jinja world of chat templates: what transformers hands to every one, in a sandbox that bounds time and memory.

A template is somebody else's program. The sandbox of jinja2 keeps it from the machine's files, but not from its memory:
`'a' * 10**10` is one operation. So whatever can make something large out of something small (products, powers, sums,
formats, string methods, filters) is looked at before it is done, and every turn of a loop, call and filter is counted.
No single operation may make more than `room` characters or items, in proportion to what the template is given, nor may
all of them together take more than `STEPS` steps or `SECONDS`.
"""

import contextvars
import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from zaya_jax.errors import UserError
from zaya_jax.text.published import one_line

ROOM = 2**18  # characters or items, beside 16 times what a template is given
STEPS = 500_000
SECONDS = 10.0  # of this thread's processor time
DIGITS = 1000  # bits of a number
GROWING = ("batch", "center", "indent", "slice", "tojson", "truncate", "wordwrap")  # filters, by their arguments
_FORMAT_WIDTH = re.compile(r"[0-9]{5,}|%[^a-zA-Z%]*\*|\{[^{}]*\{")  # a wide one, or one that arguments say
_FORMAT_FIELD = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*|\{[^{}]*\}")


@dataclasses.dataclass
class _Budget:
    """What one rendering may still do."""

    room: int = ROOM
    steps: int = STEPS
    started: float = dataclasses.field(default_factory=time.thread_time)

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0 or time.thread_time() - self.started > SECONDS:
            raise jinja2.TemplateError(f"does too much: more than {STEPS} steps or {SECONDS:g} s")

    def fits(self, size: int) -> None:
        if size > self.room:
            raise jinja2.TemplateError(f"makes too much: more than {self.room} characters or items at once")
        self.spend(1 + size // 256)

    def size(self, value: Any, left: int | None = None) -> int:
        """Characters and items in a value, however deep; stops looking where it is too much."""
        todo, size = [value], 0
        while todo and size <= self.room:
            one = todo.pop()
            size += len(one) if isinstance(one, str | bytes | list | tuple | dict | set) else 1
            if isinstance(one, int) and not isinstance(one, bool):
                size += one.bit_length() // 3
            if isinstance(one, jinja2.utils.Namespace):
                one = object.__getattribute__(one, "_Namespace__attrs")
            if isinstance(one, dict):
                todo += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple | set):
                todo += one
        return size

    def made(self, value: Any) -> Any:
        if isinstance(value, str | bytes | int | list | tuple | dict | set | jinja2.utils.Namespace):
            self.fits(self.size(value))
        return value


_BUDGET: contextvars.ContextVar[_Budget | None] = contextvars.ContextVar("budget", default=None)


def _budget() -> _Budget:
    return _BUDGET.get() or _Budget()


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, in which some templates wrap an assistant's words; turns are told apart without it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it as its own extensions have it)

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A sandbox that looks at every operation that could be large."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def _parse(self, source, name, filename):
        tree = super()._parse(source, name, filename)
        for loop in [*tree.find_all(jinja2.nodes.For)]:
            loop.iter = _through("counted_", loop.iter)
        for joined in [*tree.find_all(jinja2.nodes.Concat)]:
            joined.nodes = [_through("joined_", jinja2.nodes.List(joined.nodes, lineno=joined.lineno))]
        for output in [*tree.find_all(jinja2.nodes.Output)]:
            output.nodes = [
                one if isinstance(one, jinja2.nodes.TemplateData) else _through("made_", one) for one in output.nodes
            ]
        for made in [*tree.find_all((jinja2.nodes.Assign,))]:
            made.node = _through("made_", made.node)
        return tree

    def call_binop(self, context, operator, left, right):
        budget = _budget()
        if operator == "**":
            whole = isinstance(left, int) and isinstance(right, int)
            if whole and right > 0 and left.bit_length() * right > DIGITS:
                raise jinja2.TemplateError(f"makes too much: a number of more than {DIGITS} bits")
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                budget.fits((left.bit_length() + right.bit_length()) * (budget.room // DIGITS))
            else:
                times, repeated = (left, right) if isinstance(left, int) else (right, left)
                budget.fits(max(0, times) * budget.size(repeated) if isinstance(times, int) else 0)
        elif operator == "%" and isinstance(left, str | bytes):
            _check_format(left, [right], "%(", budget)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context, __obj, *args, **kwargs):  # named as jinja2 has it
        budget = _budget()
        budget.spend()
        owner = getattr(__obj, "__self__", None)
        owner = owner if owner is not None else getattr(getattr(__obj, "__wrapped__", None), "__self__", None)
        if isinstance(owner, str | bytes):
            _check_method(owner, __obj.__name__, [*args, *kwargs.values()], budget)
        return budget.made(super().call(__context, __obj, *args, **kwargs))


def _check_format(text: str | bytes, args: list[Any], named: str, budget: _Budget) -> None:
    """A format, before it is filled in; `named` begins a field that may ask for an argument again."""
    written = text.decode("latin-1") if isinstance(text, bytes) else text
    found = _FORMAT_WIDTH.search(written)
    if found:
        raise jinja2.TemplateError(f"formats with {found[0][:20]!r}: widths may be written out, up to 9999")
    widths = sum(int(width) for field in _FORMAT_FIELD.findall(written) for width in re.findall("[0-9]+", field))
    budget.fits(len(text) + widths + max(1, written.count(named)) * sum(map(budget.size, args)))


def _check_method(owner: str | bytes, name: str, args: list[Any], budget: _Budget) -> None:
    """A string's method, before it is called: nothing of a size that is not there already, or only a little more."""
    numbers = [arg for arg in args if isinstance(arg, int)]
    if name in ("center", "ljust", "rjust", "zfill"):
        budget.fits(max([0, *numbers]) + len(owner))
    elif name == "expandtabs":
        budget.fits(len(owner) * (1 + max([8, *numbers])))
    elif name == "replace" and len(args) > 1 and isinstance(args[1], type(owner)):
        count = cast(Callable[[Any], int], owner.count)  # of bytes, too
        budget.fits(len(owner) + (count(args[0]) if isinstance(args[0], type(owner)) else 0) * len(args[1]))
    elif name == "join":
        items = args[0] if args and isinstance(args[0], str | list | tuple | dict) else ()
        budget.fits(len(owner) * len(items) + budget.size(items))
    elif name == "translate":
        budget.fits(len(owner) * (1 + max(map(budget.size, args), default=0)))
    elif name in ("format", "format_map"):
        _check_format(owner, args, "{", budget)
    else:
        budget.spend(1 + len(owner) // 256)


def _filter(name: str, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at what it gets and at what it makes."""
    at = 1 if hasattr(wrapped, "jinja_pass_arg") else 0

    @functools.wraps(wrapped)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget = _budget()
        value, others = args[at], [*args[at + 1 :], *kwargs.values()]
        size = budget.size(value)
        budget.fits(size)
        if name in GROWING:
            numbers = [abs(other) for other in others if isinstance(other, int) and not isinstance(other, bool)]
            flat = [word for other in others for word in (other if isinstance(other, tuple | list) else [other])]
            factor = 1 + max([0, *numbers, *(len(word) for word in flat if isinstance(word, str))])
            if (size + 1) * factor > 64 * budget.room:
                raise jinja2.TemplateError(f"makes too much: filter {name!r} of {size} characters by {factor - 1}")
        if name == "format":
            _check_format(str(value), others, "%(", budget)
        if name in ("replace", "join"):
            _check_method(*_as_method(name, value, others), budget)
        if name == "sum" and any(isinstance(other, list | tuple) for other in others):
            raise jinja2.TemplateError("filter 'sum': may start from a number")
        if name in ("urlize", "striptags", "wordwrap"):
            budget.fits(size * 16)  # regular expressions that look back
        return budget.made(wrapped(*args, **kwargs))

    return bounded


def _as_method(name: str, value: Any, others: list[Any]) -> tuple[str, str, list[Any]]:
    if name == "join":
        return str(others[0]) if others else "", "join", [value]
    return str(value), "replace", list(map(str, others))


def _through(name: str, node: Any) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Counted:
    """What a loop goes over, every turn counted."""

    def __init__(self, items: Iterable[Any]):
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        budget = _budget()
        for item in self._items:
            budget.spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]


def _joined(values: list[Any]) -> str:
    budget = _budget()
    budget.fits(sum(map(budget.size, values)))
    return "".join(map(str, values))


def _concatenated(parts: Iterable[str]) -> str:
    parts = list(parts)
    _budget().fits(sum(map(len, parts)))
    return "".join(parts)


def compiled(source: str) -> jinja2.Template:
    """A template from its text. UserError, one line, for one that is none."""
    try:
        return _world().from_string(source)
    except Exception as error:  # jinja2's, or Python's for what is nested too deep
        raise UserError(f"chat_template: {one_line(error)}") from None


def parsed(source: str) -> jinja2.nodes.Template:
    """The template's tree, without what `_Bounded` adds; `compiled` has refused what has none."""
    return jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(source)


def rendered(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """What a template writes. UserError, one line, for one that fails or does too much."""
    given = _Budget(room=2**40).size(variables)
    token = _BUDGET.set(_Budget(ROOM + 16 * given, STEPS + 16 * given))
    try:
        return _concatenated(template.root_render_func(template.new_context(variables)))
    except Exception as error:  # a template can raise what it likes, of Python's too (a division by zero)
        raise UserError(f"chat_template: {' '.join(str(error).split())[:300] or type(error).__name__}") from None
    finally:
        _BUDGET.reset(token)


@functools.cache
def _world() -> jinja2.Environment:
    """White space and functions as transformers sets them, so that its templates mean the same here."""
    world = _Bounded(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    world.concat = cast(Any, _concatenated)  # what macros and blocks write
    world.filters["tojson"] = _tojson
    world.filters = {name: _filter(name, one) for name, one in world.filters.items()}
    world.filters |= {"counted_": _Counted, "joined_": _joined, "made_": lambda value: _budget().made(value)}
    del world.globals["lipsum"]  # random words
    names = cast(dict[str, Any], world.globals)
    names.update(raise_exception=_refuse, strftime_now=lambda format: datetime.now().strftime(format))
    return world


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
