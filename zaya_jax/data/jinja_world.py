"""The Jinja world of chat templates: what transformers hands to every template, in a sandbox."""

import functools
import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from zaya_jax.data.published import one_line
from zaya_jax.errors import UserError


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, in which some templates wrap an assistant's words; turns are told apart without it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it as its own extensions have it)

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compiled(source: str) -> jinja2.Template:
    try:
        return _world().from_string(source)
    except Exception as error:
        raise UserError(f"chat_template: {one_line(error)}") from None


def parsed(source: str) -> jinja2.nodes.Template:
    return _world().parse(source)


def rendered(template: jinja2.Template, variables: dict[str, Any]) -> str:
    try:
        return template.render(variables)
    except Exception as error:
        raise UserError(f"chat_template: {one_line(error)}") from None


@functools.cache
def _world() -> jinja2.Environment:
    world = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    world.filters["tojson"] = _tojson
    world.globals |= {"raise_exception": _refuse, "strftime_now": lambda format: datetime.now().strftime(format)}
    return world


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
