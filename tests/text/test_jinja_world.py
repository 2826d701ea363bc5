"""What a template may multiply, repeat and print is bounded; ordinary templates notice nothing."""

import time
import tracemalloc

import pytest

from zaya_jax.errors import UserError
from zaya_jax.text import jinja_world
from zaya_jax.text.jinja_world import compiled, rendered

MANY = "{% set n = namespace(a='aa', b=[1], c=[1]) %}{% for i in range(60) %}"
LONG = "{% set a = 'a' * 199999 %}"
# Each of the bounds is the only one that stops some line here: without it that line's test fails.


def tree(leaf: str, depth: int) -> str:
    return f"({tree(leaf, depth - 1)} + {tree(leaf, depth - 1)})" if depth else leaf


def nested(value: str) -> str:
    """2^20 of them in one another, shared: small until printed."""
    return MANY.replace("60", "20") + "{% set n.b = " + value + " %}{% endfor %}{{ n.b }}"


HARMFUL = {
    "a product": "{{ 'a' * 10**9 }}",
    "a product from the left": "{{ 10**9 * 'a' }}",
    "a list": "{{ [0] * 10**9 }}",
    "a list of long numbers": "{{ [('9' * 4000) | int] * 100000 }}",
    "a power": f"{{{{ (2 ** {jinja_world.DIGITS}) is number }}}}",  # which takes no time where nothing looks at it
    "a product of numbers": "{{ (10**200) * (10**200) }}",
    "a tree of sums": LONG + "{{ " + tree("a", 10) + " }}",
    "a long concatenation": LONG + "{{ " + " ~ ".join(["a"] * 999) + " }}",
    "a text often in a list": LONG + "{{ [" + "a," * 999 + "] }}",
    "a text often in a block": LONG + "{% set b %}" + "{{ a }}" * 999 + "{% endset %}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a format's argument": "{{ '%*d' % (1000000000, 1) }}",
    "a format filter": "{{ '%1000000000d' | format(1) }}",
    "a format method": "{{ '{:>1000000000}'.format(1) }}",
    "many widths": "{{ ('%(a)9999d' * 27000) % {'a': 1} }}",
    "many widths by a method": "{{ ('{0:9999}' * 27000).format(1) }}",
    "a long argument, often": LONG + "{{ ('%(b)s' * 999) % {'b': a} }}",
    "a long argument of a filter, often": LONG + "{{ ('%(b)s' * 999) | format(b=a) }}",
    "a long argument of a method, often": LONG + "{{ ('{0}' * 999).format(a) }}",
    "a nested format": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "a width": "{{ 'x'.ljust(10**9) }}{{ 'x'.zfill(10**9) }}",
    "tabs": "{{ '\\t'.expandtabs(10**9) }}",
    "center": "{{ 'x' | center(10**9) }}",
    "center by map": "{{ ['x'] | map('center', 10**9) | list }}",
    "indent": "{{ ('\\n' * 9999) | indent(9999) | indent(9999) | indent(9999, true) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "replace": LONG + "{{ a.replace('a', a) }}",
    "replace filter": LONG + "{{ a | replace('a', a) }}",
    "translate": LONG + "{{ a.translate({97: a}) }}",
    "join": "{{ ('x' * 99999).join(['a'] * 99999) }}",
    "join filter": "{{ (['a'] * 99999) | join('x' * 99999) }}",
    "a sum of lists": "{{ ([[1]] * 60000) | sum(start=[]) | length }}",
    "tags": "{{ ('<' * 99999) | striptags }}",
    "doubling": MANY + "{% set n.a = n.a ~ n.a %}{% endfor %}",
    "doubling by sums": MANY + "{% set n.a = n.a + n.a %}{% endfor %}",
    "doubling blocks": MANY + "{% set b %}{{ n.a }}{{ n.a }}{% endset %}{% set n.a = b %}{% endfor %}",
    "many large ones": LONG + "{% for i in range(9999) %}{% set b = a ~ i %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "printing": "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
    "tojson": "{{ ([[1] * 999] * 99) | tojson(indent=9999) }}",
    "words": "{{ lipsum(n=1, min=1, max=2) }}",
    "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "digits": "{{ " + "9" * 5000 + " }}",
}


# The same with less room and fewer steps, since reaching the usual ones takes seconds.
SLOWLY_HARMFUL = {
    "nested lists": MANY + "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.b }}",
    "nested dictionaries": nested("{'x': n.b, 'y': n.b}"),
    "nested namespaces": nested("namespace(x=n.b, y=n.b)"),
    "equal nested lists": MANY.replace("60", "22")
    + "{% set n.b = [n.b, n.b] %}{% set n.c = [n.c, n.c] %}{% endfor %}{{ n.b == n.c }}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loops": "{% for i in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
}


# Long in reaching their limits, which others reach likewise: a filter's, a sum's and a serialiser's.
LONG = ("join filter", "a sum of lists", "tojson")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in HARMFUL]
)
def test_a_template_that_does_too_much_is_stopped(name, monkeypatch):
    if name == "recursion":  # the one that only time stops
        monkeypatch.setattr(jinja_world, "SECONDS", 0.5)
    started = time.thread_time()
    tracemalloc.start()
    with pytest.raises(UserError, match=r"^chat_template: ") as error:
        rendered(compiled(HARMFUL[name]), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value) and "MemoryError" not in str(error.value)
    assert peak < 100e6 and time.thread_time() - started < 30


@pytest.mark.parametrize("name", SLOWLY_HARMFUL)
def test_what_grows_from_little_is_stopped_while_it_is_little(name, monkeypatch):
    monkeypatch.setattr(jinja_world, "ROOM", 2_000)
    monkeypatch.setattr(jinja_world, "STEPS", 20_000)
    template = compiled(SLOWLY_HARMFUL[name])
    tracemalloc.start()
    with pytest.raises(UserError, match=r"too much|recursion"):
        rendered(template, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize(("bound", "other"), [("STEPS", "SECONDS"), ("SECONDS", "STEPS")])
def test_steps_and_seconds_are_bounds_each_of_its_own(bound, other, monkeypatch):
    monkeypatch.setattr(jinja_world, bound, 1_000 if bound == "STEPS" else 0.1)
    monkeypatch.setattr(jinja_world, other, 10**12)
    template = compiled("{% for i in range(9999) %}{% for j in range(99) %}{% endfor %}{% endfor %}")
    with pytest.raises(UserError, match="does too much"):
        rendered(template, {})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in x %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}", "1/2,2/2"),
        (
            "{{ 'a' * 3 ~ 1 ~ none }}{{ 2 ** 10 + 1 }}{{ '%05.1f' % 2.25 }}{{ '{:>4}'.format(7) }}",
            "aaa1None1025002.2   7",
        ),
        ("{{ x | map('upper') | join('-') }}{{ 'a-b' | replace('-', '+') }}{{ 'x' | center(3) }}|", "B-Ca+b x |"),
        (
            "{% set y %}{{ x[0] }}!{% endset %}{{ y }}{% for a, b in {'k': 1}.items() %}{{ a }}{{ b }}{% endfor %}",
            "b!k1",
        ),
        ("{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "3210"),
        ("{% for i in x if i != 'b' %}{{ i }}{% else %}none{% endfor %}{{ x[::-1] | tojson }}", 'c["c", "b"]'),
        ("{{ ('a' * 199999) | length }}{{ ([1] * 100000) | length }}{{ 2 * 1.5 }}", "1999991000003.0"),
        ("{% for i in y %}{% endfor %}{{ y }}{{ y is defined }}", "False"),
        (
            "{{ x[0] | truncate(50000) }}{{ '%s of %(n)s' | replace('%s', 'b') | format(n=2) }}{{ lipsum is defined }}",
            "bb of 2False",
        ),
        (
            "{{ '%-3s|%3d|%(a)s' | length }}{{ 'in 20000 days' }}{{ '%s' % ('in 2024, 2025',) }}",
            "14in 20000 daysin 2024, 2025",
        ),
    ],
)
def test_ordinary_templates_notice_nothing(source, text):
    assert rendered(compiled(source), {"x": ["b", "c"]}) == text


def test_long_chats_have_room():
    messages = [{"role": "user", "content": "word " * 200_000}] * 4
    text = rendered(
        compiled("{% for m in messages %}{{ m.role ~ ':' + m.content | trim }}{% endfor %}"), {"messages": messages}
    )
    assert len(text) == 4 * (5 + 999_999)
