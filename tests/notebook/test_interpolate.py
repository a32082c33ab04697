"""`{{ expr }}` is the only syntax in a prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.error import UsageError

from vllm_nb.notebook.interpolate import expressions, interpolate

NAMESPACE = {"name": "Ada", "rows": [3, 1, 2], "nested": {"a": {"b": "deep"}}, "braces": "{{ name }} {% x %}"}

BRACES = [
    "plain",
    "{",
    "}",
    "{x}",
    '{"json": {"a": [1, 2]}}',
    "{% if x %} yes {% endif %}",
    "{# not a comment #}",
    r"\frac{a}{b}",
    "}} alone",
    "{%- raw -%}",
    "for (;;) { x++; }",
    "{ { name } }",
]


@pytest.mark.parametrize("text", BRACES)
def test_other_braces_are_text(text: str) -> None:
    assert interpolate(text, NAMESPACE) == text
    # Beside an expression too, where Jinja does read the text.
    assert interpolate(f"{text}\n{{{{ name }}}}\n{text}", NAMESPACE) == f"{text}\nAda\n{text}"


# Jinja takes "{{" and joins line ends; everything else must come through as it is.
texts_without_expression = st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])).filter(
    lambda text: "{{" not in text and not text.endswith("{")
)


@given(texts_without_expression, texts_without_expression, st.text())
def test_any_text_around_an_expression_survives(before: str, after: str, value: str) -> None:
    assert interpolate(f"{before}{{{{ value }}}}{after}", {"value": value}) == before + value + after


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ name }}", "Ada"),
        ("{{name}}", "Ada"),
        ("{{ rows[0] + 1 }}", "4"),
        ("{{ sorted(rows) }}", "[1, 2, 3]"),
        ("{{ len(rows) }} {{ str(5) ~ 'x' }}", "3 5x"),
        ("{{ nested.a.b }}", "deep"),
        ("{{ {'a': {'b': 1}}['a']['b'] }}", "1"),
        ("{{ rows | join('-') }}", "3-1-2"),
        ("{{ absent | default('none') }}", "none"),
        ('{{ "{{" }} {{ "}}" }}', "{{ }}"),
        ("{{ braces }}", "{{ name }} {% x %}"),  # a value is data, never syntax
        ("{{ name }}\n", "Ada\n"),
    ],
)
def test_expressions(text: str, expected: str) -> None:
    assert interpolate(text, NAMESPACE) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hi {{ nmae }}", "{{ nmae }}: 'nmae' is not defined in this notebook; did you mean 'name'?"),
        ("{{ qqq }}", "{{ qqq }}: 'qqq' is not defined in this notebook"),
        ("{{ nested.zz }}", "{{ }}: 'dict object' has no attribute 'zz'"),
        ("one\ntwo {{ name", "{{ }} on line 2: a '{{' is never closed, in 'two {{ name'. "),
        ("{{ 1 + }}", "{{ }} on line 1: "),
        ("{{ rows.append(1) }}", "{{ }}: access to attribute 'append' of 'list' object is unsafe."),
        ("{{ 1 / 0 }}", "an expression in {{ }} failed: ZeroDivisionError: division by zero"),
        ("{{ name.__class__ }}", "{{ }}: access to attribute '__class__' of 'str' object is unsafe."),
    ],
)
def test_mistakes_are_usage_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        interpolate(text, NAMESPACE)
    assert type(caught.value) is UsageError
    assert str(caught.value).startswith(message)
    assert NAMESPACE["rows"] == [3, 1, 2]


def test_expressions_are_found_whole() -> None:
    line = """--system {{ name }} --stop "{{ {'a': {'b': 1}}['a'] }}" -o {x}"""
    assert expressions(line) == ["{{ name }}", "{{ {'a': {'b': 1}}['a'] }}"]
