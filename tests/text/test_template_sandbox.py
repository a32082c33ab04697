"""Templates of evil intent: each ends in an error, in bounded time and memory, or does no harm."""

import os
import subprocess
import sys

import jinja2
import pytest
from jinja2.exceptions import SecurityError

from vllm_nb.text import template_sandbox
from vllm_nb.text.template_sandbox import TemplateEnvironment, render

LOOP = "{% set ns = namespace(x=START, y=START) %}{% for i in range(80) %}{% set ns.x = BODY %}{% endfor %}"


def repeat(start: str, body: str, then: str = "{{ ns.x }}") -> str:
    """`body` in terms of ns.x, eighty times over: whatever it doubles fills any memory."""
    return LOOP.replace("START", start).replace("BODY", body) + then


def run(source: str, **variables) -> str:
    return render(TemplateEnvironment().from_string(source), variables)


TOO_MUCH = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "calls without end": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "raw text in a loop": "{% for i in range(100000) %}" + "x" * 100_000 + "{% endfor %}",
    "raw text kept": "{% set x %}{% for i in range(100000) %}" + "x" * 100_000 + "{% endfor %}{% endset %}",
    "raw text in a block": "{% block a %}"
    + "y" * 5000
    + "{% endblock %}{% for i in range(99999) %}{{ self.a() }}{% endfor %}",
    "raw text in a call": "{% macro f() %}{{ caller() }}{% endmacro %}{% for i in range(99999) %}{% call f() %}"
    + "z" * 5000
    + "{% endcall %}{% endfor %}",
    "text by ~": repeat("'aaaa'", "ns.x ~ ns.x", ""),
    "text by +": repeat("'aaaa'", "ns.x + ns.x", ""),
    "text by *": "{{ 'a' * 10**10 }}",
    "text by *, turned": "{{ 10**10 * 'a' }}",
    "list by *": "{{ [1] * 10**10 }}",
    "text by set": "{% set ns = namespace(x='aaaa') %}{% for i in range(80) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "big number by *": repeat("3", "ns.x * ns.x"),
    "big number by **": "{{ 9 ** (9 ** 9) }}",
    "join filter": "{% set s = 'a' * 1000000 %}{{ range(100000) | join(s) }}",
    "join method": "{% set s = 'a' * 1000000 %}{{ s.join(range(100000) | map('string')) }}",
    "replace filter": "{% set s = 'a' * 1000000 %}{{ s | replace('a', s) }}",
    "replace method": "{% set s = 'a' * 1000000 %}{{ s.replace('', s) }}",
    "split": "{{ ('ab ' * 1000000).split() | length }}" * 9,
    "list of characters": "{{ ('éЖ' * 1000000) | list | length }}" * 9,
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "indented JSON": "{{ [1] | tojson(indent=10**10) }}",
    # What is small in memory, and endless when printed or compared
    "nested lists": repeat("[1]", "[ns.x, ns.x]"),
    "nested lists by +": repeat("[1]", "[ns.x] + [ns.x]"),
    "nested lists by *": repeat("[1]", "[ns.x] * 2"),
    "nested lists by map": repeat("[1]", "range(2) | map(attribute='q', default=ns.x) | list"),
    "nested tuples": repeat("(1,)", "(ns.x, ns.x)"),
    "nested dictionaries": repeat("{}", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}"),
    "nested dictionaries by call": repeat("{}", "dict(a=ns.x, b=ns.x)", "{{ ns.x | string }}"),
    "nested views": repeat("{}", "{'a': ns.x, 'b': ns.x}.items()"),
    "nested by groupby": repeat("[1]", "[ns.x] | groupby('q', default=ns.x) | list"),
    "nested lists compared": repeat("[1]", "[ns.x, ns.x]", "{{ ns.x == [ns.x] }}"),
    "nested arguments": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}"
    "{% endmacro %}{{ f(80, 1) }}",
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_too_much(kind):
    with pytest.raises(SecurityError, match=r"than a chat template may|longer than|indents JSON"):
        run(TOO_MUCH[kind])


NOT_ALLOWED = [
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(content='x') }}",
    "{{ raise_exception.__globals__.os }}",
    "{{ self._TemplateReference__context.environment }}",
]


@pytest.mark.parametrize("source", NOT_ALLOWED)
def test_not_allowed(source):
    with pytest.raises(SecurityError):
        run(source, messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize("source", ["{{ lipsum(9) }}", "{{ config.items() }}", "{{ request.x }}"])
def test_not_there(source):
    with pytest.raises(jinja2.UndefinedError):
        run(source)


@pytest.mark.parametrize("source", ["{% include '/etc/hosts' %}", "{% import 'os' as os %}", "{% extends 'x' %}"])
def test_no_other_files(source):
    with pytest.raises(TypeError, match="no loader"):
        run(source)


@pytest.mark.parametrize("name", ["attr", "format", "center", "xmlattr", "urlize", "pprint", "random", "batch"])
def test_filters_left_out(name):
    with pytest.raises(jinja2.TemplateAssertionError, match="No filter named"):
        TemplateEnvironment().from_string("{{ x | " + name + " }}")


def test_recursion_ends():
    with pytest.raises(RecursionError):
        run("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


def test_the_clock(monkeypatch):
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.05)
    with pytest.raises(SecurityError, match=r"longer than 0.05 seconds"):
        run("{% set x = range(100000) | list %}{% for i in range(100000) %}{% if 'q' in x %}{% endif %}{% endfor %}")


def test_nothing_is_evaluated_while_compiling():
    """Jinja folds constants: a template could fill the memory before it is ever rendered."""
    TemplateEnvironment().from_string(TOO_MUCH["text by *"] + TOO_MUCH["replace filter"] + "{{ 'a' | indent(10**10) }}")


def test_budgets_are_each_renderings_own(monkeypatch):
    monkeypatch.setattr(template_sandbox, "MAX_WORK", 10_000)
    template = TemplateEnvironment().from_string("{% for i in range(1000) %}{% endfor %}")
    for _ in range(3):
        render(template, {})
    with pytest.raises(SecurityError):
        run("{% for i in range(2000) %}{% endfor %}")


def test_long_conversations_are_no_attack():
    source = (
        "{% set ns = namespace(turns=[]) %}{% for m in messages %}{% set ns.turns = ns.turns + [m] %}{% endfor %}"
        "{% for m in ns.turns %}{{ '<' + m.role + '>' + m.content | trim + '</>' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": f"{i} " + "word " * 200} for i in range(400)]
    assert len(run(source, messages=messages)) > 400_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_memory_stays_small():
    """In a process that may have 1 GB of address space more than Python and Jinja take."""
    script = f"""
import importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("sandbox_tests", {os.path.abspath(__file__)!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
for kind in tests.TOO_MUCH:
    if "nested" not in kind and "calls" not in kind:
        try:
            tests.run(tests.TOO_MUCH[kind])
        except tests.SecurityError:
            pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
