"""What a template may multiply, repeat and print is bounded; ordinary templates notice nothing."""

import time
import tracemalloc

import pytest

from zaya_jax.errors import UserError
from zaya_jax.text import jinja_world
from zaya_jax.text.jinja_world import compiled, rendered

MANY = "{% set n = namespace(a='aa', b=[1]) %}{% for i in range(60) %}"
HARMFUL = {
    "a product": "{{ 'a' * 10**10 }}",
    "a list": "{{ [0] * 10**9 }}",
    "a power": "{{ 9 ** 999999999 }}",
    "a product of products": "{{ (10**300) * (10**300) * (10**300) }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a format's argument": "{{ '%*d' % (1000000000, 1) }}",
    "a format filter": "{{ '%1000000000d' | format(1) }}",
    "a format method": "{{ '{:>1000000000}'.format(1) }}",
    "a nested format": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "a width": "{{ 'x'.ljust(10**9) }}{{ 'x'.zfill(10**9) }}",
    "center": "{{ 'x' | center(10**9) }}",
    "indent": "{{ ('\\n' * 9999) | indent(9999) | indent(9999) | indent(9999, true) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "replace": "{% set a = 'a' * 99999 %}{{ a.replace('a', a) }}",
    "replace filter": "{% set a = 'a' * 99999 %}{{ a | replace('a', a) }}",
    "join": "{{ ('x' * 99999).join(['a'] * 99999) }}",
    "doubling": MANY + "{% set n.a = n.a ~ n.a %}{% endfor %}",
    "doubling by sums": MANY + "{% set n.a = n.a + n.a %}{% endfor %}",
    "doubling blocks": MANY + "{% set b %}{{ n.a }}{{ n.a }}{% endset %}{% set n.a = b %}{% endfor %}",
    "nested lists": MANY + "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.b }}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "printing": "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loops": "{% for i in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "tojson": "{{ [[1] * 999] * 99 | tojson(indent=9999) }}",
    "words": "{{ lipsum(n=100000) }}",
    "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "digits": "{{ " + "9" * 5000 + " }}",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_template_that_does_too_much_is_stopped(name, monkeypatch):
    if name == "recursion":  # the one that only time stops
        monkeypatch.setattr(jinja_world, "SECONDS", 0.5)
    started = time.thread_time()
    tracemalloc.start()
    with pytest.raises(UserError, match=r"^chat_template: ") as error:
        rendered(compiled(HARMFUL[name]), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value) and peak < 300e6 and time.thread_time() - started < 30


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
        ("{% for i in y %}{% endfor %}{{ y }}{{ y is defined }}", "False"),
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
