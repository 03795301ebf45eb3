"""What a command takes, and what a caller hears who sends something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.connectors.parameters import NotAName, Parameter, Signature
from gateway.errors import InvalidParameters

if TYPE_CHECKING:
    from pathlib import Path


def parameter(name: str = "a", kind: str = "any", *, required: bool = True, **more: Any) -> Parameter:
    return Parameter(id=name, type=kind, required=required, **more)


def check(signature: Signature, sent: str) -> dict[str, Any]:
    """Check a JSON object as it arrives; return what the connector would read."""
    raw = msgspec.json.decode(sent, type=dict[str, msgspec.Raw])
    return msgspec.json.decode(msgspec.json.encode(signature.check(raw)))


def refusal(signature: Signature, sent: str) -> str:
    with pytest.raises(InvalidParameters) as caught:
        check(signature, sent)
    return caught.value.message


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("str", '""'), ("str", '"☃"'), ("str", '"1"'),
        ("int", "0"), ("int", "-7"), ("int", "123456789012345678901234567890"),
        ("bool", "true"), ("bool", "false"),
        ("any", "null"), ("any", "1.5"), ("any", "[1, {}]"), ("any", '{"a": [null]}'), ("any", '"x"'), ("any", "true"),
    ],
)  # fmt: skip
def test_a_value_of_the_type_passes_as_it_is(kind: str, value: str) -> None:
    signature = Signature((parameter(kind=kind),))
    sent = msgspec.json.decode(f'{{"a": {value}}}', type=dict[str, msgspec.Raw])
    assert bytes(signature.check(sent)["a"]).decode() == value


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        ("str", "1", "a must be text, not a number"),
        ("str", "1.5", "a must be text, not a number"),
        ("str", "{}", "a must be text, not an object"),
        ("str", "null", "a must be text, not null"),
        ("int", '"1"', "a must be an integer, not text"),
        ("int", "1.0", "a must be an integer, not a number with a fraction or exponent"),
        ("int", "1e3", "a must be an integer, not a number with a fraction or exponent"),
        ("int", "true", "a must be an integer, not true"),
        ("bool", "0", "a must be true or false, not a number"),
        ("bool", '"true"', "a must be true or false, not text"),
        ("bool", "[]", "a must be true or false, not a list"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: str, value: str, problem: str) -> None:
    assert refusal(Signature((parameter(kind=kind),)), f'{{"a": {value}}}') == f"{problem} (parameters: a)"


def test_all_that_is_wrong_is_named_at_once() -> None:
    signature = Signature(
        (parameter("to", "str"), parameter("pages", "int"), parameter("urgent", "bool", required=False))
    )
    message = refusal(signature, '{"pages": "two", "urgent": 1, "form": "fax"}')
    assert message == (
        "to is missing; pages must be an integer, not text; urgent must be true or false, not a number; "
        "form is unknown (parameters: to, pages, urgent)"
    )


def test_what_is_not_declared_passes_where_that_is_declared() -> None:
    assert check(Signature((), additional=True), '{"any": [1]}') == {"any": [1]}
    assert refusal(Signature(()), '{"any": [1]}') == "any is unknown (parameters: none)"


def test_null_stands_for_absent_where_a_parameter_is_optional() -> None:
    assert check(Signature((parameter(kind="str", required=False),)), '{"a": null}') == {"a": None}


@pytest.mark.parametrize("default", [5, "x", False, None, [1], {"b": 1}])
def test_a_default_is_filled_in_and_the_caller_s_value_wins(default: Any) -> None:
    signature = Signature((parameter(required=False, default=default),))
    assert check(signature, "{}") == {"a": default}
    assert check(signature, '{"a": "own"}') == {"a": "own"}


@pytest.mark.parametrize(
    ("value", "fits"), [('"red"', True), ("1", True), ("true", False), ("1.0", False), ('"Red"', False), ("[]", False)]
)
def test_an_enum_compares_types_too(value: str, fits: bool) -> None:
    signature = Signature((parameter(enum=["red", 1]),))
    if fits:
        check(signature, f'{{"a": {value}}}')
    else:
        assert refusal(signature, f'{{"a": {value}}}') == 'a must be one of ["red",1] (parameters: a)'


# --- schemas


ADDRESS = {
    "type": "object",
    "properties": {"lines": {"type": "array", "items": {"type": "string", "maxLength": 4}}},
    "required": ["lines"],
}


def test_a_schema_is_checked_deep_inside_and_the_place_is_named() -> None:
    signature = Signature((parameter(schema=ADDRESS),))
    assert check(signature, '{"a": {"lines": ["one"]}}') == {"a": {"lines": ["one"]}}
    assert (
        refusal(signature, '{"a": {"lines": ["one", "three"]}}')
        == "a.lines[1] does not satisfy maxLength: 4 (parameters: a)"
    )
    assert refusal(signature, '{"a": {}}') == 'a does not satisfy required: ["lines"] (parameters: a)'


def test_no_message_quotes_a_value() -> None:
    signature = Signature((
        parameter("one", secret=True, schema={"type": "string", "maxLength": 3}),
        parameter("two", secret=True, enum=["a"]),
        parameter("three", "int", secret=True),
    ))  # fmt: skip
    assert "hunter2" not in refusal(signature, '{"one": "hunter2", "two": "hunter2", "three": "hunter2"}')


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"pattern": "("}, {"required": "a"}, {"minimum": "1"}])
def test_a_schema_that_is_none_is_refused_when_it_is_declared(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a: schema is not a JSON Schema: "):
        Signature((parameter(schema=schema),))


def test_a_schema_may_refer_to_its_own_parts() -> None:
    schema = {"$ref": "#/$defs/short", "$defs": {"short": {"maxLength": 2}}}
    assert refusal(Signature((parameter(schema=schema),)), '{"a": "long"}').startswith(
        "a does not satisfy maxLength: 2"
    )


def test_a_schema_never_fetches_what_it_refers_to(tmp_path: Path) -> None:
    there = tmp_path / "schema.json"
    there.write_text("{}")
    for where in (there.as_uri(), "http://127.0.0.1:9/x.json", "#/$defs/missing", "#nowhere"):
        with pytest.raises(ValueError, match="a: schema cannot be checked: its schema refers to ") as refused:
            Signature((parameter(schema={"$ref": where}),))
        assert str(refused.value).endswith(f"{where}, which is not there")


def test_a_value_or_schema_without_a_bottom_is_refused() -> None:
    for schema in ({"$ref": "#"}, {"allOf": [{"not": {"$ref": "#"}}]}):
        with pytest.raises(ValueError, match="a: schema refers to itself without a bottom"):
            Signature((parameter(schema=schema),))
    deep = "[" * 100_000 + "]" * 100_000
    raw = {"a": msgspec.Raw(deep.encode())}
    for declared in ({"schema": {}}, {"enum": [1]}):
        with pytest.raises(InvalidParameters, match="a is nested too deeply"):
            Signature((parameter(**declared),)).check(raw)


def test_a_long_bound_is_shortened_in_the_message() -> None:
    signature = Signature((parameter(schema={"enum": ["x" * 50] * 1 + [str(n) * 9 for n in range(100)]}),))
    message = refusal(signature, '{"a": "y"}')
    assert "..." in message
    assert len(message) < 300


# --- schemas whose work is bounded


def doubled(count: int, *, inside: bool = False) -> dict[str, Any]:
    """Return a schema that looks at one value 2 ** count times."""
    parts: dict[str, Any] = {"a0": {"type": "integer"}}
    for n in range(1, count + 1):
        twice: list[Any] = [{"$ref": f"#/$defs/a{n - 1}"}] * 2
        parts[f"a{n}"] = {"allOf": [{"items": one} for one in twice]} if inside else {"anyOf": twice}
    return {"$ref": f"#/$defs/a{count}", "$defs": parts}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (doubled(24), "more than 10,000 comparisons"),
        (doubled(40, inside=True), "more than 10,000 comparisons"),
        ({"enum": list(range(20_000))}, "more than 10,000 comparisons"),
        ({"pattern": "(?=a)b"}, "linear time"),
        ({"pattern": "(a)\\1"}, "linear time"),
        ({"patternProperties": {"(?!x)": {}}}, "linear time"),
        ({"pattern": "(a{1000}){1000}"}, "linear time"),
        (msgspec.json.decode(b'{"not":' * 90 + b"{}" + b"}" * 90), "nested too deeply"),
    ],
)
def test_a_schema_whose_work_cannot_be_bounded_is_refused_when_it_is_declared(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"a: schema .*{why}"):
        Signature((parameter(schema=schema),))


def test_a_schema_may_refer_to_itself_for_values_below() -> None:
    tree = {
        "type": "object",
        "required": ["n"],
        "properties": {"n": {"type": "integer"}, "left": {"$ref": "#"}, "right": {"$ref": "#"}},
    }
    signature = Signature((parameter(schema=tree),))
    deep = '{"n": 1, "left": ' * 50 + '{"n": "x"}' + "}" * 50
    assert refusal(signature, f'{{"a": {deep}}}').startswith("a" + ".left" * 50 + ".n does not satisfy type: ")
    deeper = '{"n": 1, "left": ' * 150 + '{"n": 1}' + "}" * 150
    assert "a is nested too deeply" in refusal(signature, f'{{"a": {deeper}}}')


def test_a_schema_that_meets_itself_twice_bounds_the_depth() -> None:
    signature = Signature((parameter(schema={"allOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}),))
    assert check(signature, '{"a": [[[1]]]}') == {"a": [[[1]]]}
    assert "a is nested too deeply" in refusal(signature, '{"a": ' + "[" * 40 + "]" * 40 + "}")


def test_a_schema_with_names_of_its_own_is_understood() -> None:
    for where in ("#short", "https://example.com/short", "#/$defs/a~1b", "https://example.com/whole#/$defs/a~1b"):
        schema = {
            "$ref": where,
            "$defs": {"a/b": {"maxLength": 2, **({"$anchor": "short"} if where == "#short" else {})}},
        }
        if where == "https://example.com/short":
            schema["$defs"]["a/b"]["$id"] = where
        schema["$id"] = "https://example.com/whole"
        assert "does not satisfy maxLength: 2" in refusal(Signature((parameter(schema=schema),)), '{"a": "long"}')


@pytest.mark.parametrize(
    ("schema", "sent", "why"),
    [
        ({"items": {"type": "integer"}}, "[" + "1," * 300_000 + "1]", "more values in it than its schema"),
        ({"items": {"enum": list(range(5000))}}, "[" + "1," * 1000 + "1]", "more values in it than its schema"),
        ({"maxItems": 1}, '["' + "x" * (5 << 20) + '"]', "larger than its schema can be checked for"),
        ({"pattern": "^a+$"}, '"' + "a" * (5 << 20) + '"', "larger than its schema can be checked for"),
        (
            {"anyOf": [{"maxItems": 1}, {"items": {"type": "string"}}]},
            "[" + "1," * 20_000 + "1]",
            "does not satisfy its schema, and is too large to say where",
        ),
        ({"maxItems": 1}, "[" + "1," * 20_000 + "1]", "does not satisfy maxItems: 1"),
    ],
)
def test_a_value_that_would_take_too_long_is_refused(schema: dict[str, Any], sent: str, why: str) -> None:
    assert f"a {'has ' * why.startswith('more')}{'is ' * why.startswith('larger')}{why}" in refusal(
        Signature((parameter(schema=schema),)), f'{{"a": {sent}}}'
    )


def test_a_long_text_is_checked_where_no_pattern_is() -> None:
    signature = Signature((parameter(schema={"type": "string", "minLength": 5}),))
    long = "a" * (8 << 20)
    assert check(signature, f'{{"a": "{long}"}}') == {"a": long}


# --- secrets


def test_every_text_and_number_of_a_secret_parameter_is_found() -> None:
    signature = Signature(
        (parameter("key", "str", secret=True), parameter("more", secret=True, required=False), parameter("open"))
    )
    deep = "[" * 100_000 + "]" * 100_000
    for more, expected in (
        ('"other"', {"other"}),
        ("1234", {"1234"}),
        ("null", set()),
        ('{"a": [{"b": "deep"}, true]}', {"deep"}),
    ):
        sent = {"key": msgspec.Raw(b'"hunter2"'), "more": msgspec.Raw(more.encode()), "open": msgspec.Raw(b'"seen"')}
        assert set(signature.secret_values(sent) or ()) == {"hunter2", *expected}
    assert signature.secret_values({}) == []
    assert signature.secret_values({"more": msgspec.Raw(deep.encode())}) is None  # and then nothing is shown at all


# --- annotations that only describe


def describing(*parameters: Parameter) -> Signature:
    return Signature(parameters, enforced=False, filled=False)


@pytest.mark.parametrize("value", ["text", 1, 1.5, None, True, [1], {"a": [None]}, 10**40])
def test_a_signature_that_only_describes_takes_any_value(value: Any) -> None:
    for kind in ("str", "int", "bool", "any"):
        one = Parameter(id="a", type=kind, required=True, enum=["x"], schema={"type": "string", "minLength": 3})
        sent = {"a": msgspec.Raw(msgspec.json.encode(value))}
        assert describing(one).check(sent) == sent


def test_a_signature_that_only_describes_knows_its_names() -> None:
    one = Parameter(id="a", type="str", required=True)
    with pytest.raises(InvalidParameters, match=r"a is missing; b is unknown \(parameters: a\)"):
        describing(one).check({"b": msgspec.Raw(b"1")})


def test_defaults_that_are_the_connectors_own_are_not_filled_in() -> None:
    one = Parameter(id="a", type="str", required=False, default="x")
    assert describing(one).check({}) == {}
    assert Signature((one,)).check({}) == {"a": msgspec.Raw(b'"x"')}


@pytest.mark.parametrize(
    ("names", "fault"), [(("spiff__x",), "the caller's context"), (("a", "b", "a"), "named twice")]
)
def test_names_that_cannot_be_parameters_are_refused(names: tuple[str, ...], fault: str) -> None:
    with pytest.raises(NotAName, match=fault) as problem:
        Signature(tuple(Parameter(id=name, type="any", required=False) for name in names))
    assert problem.value.name == names[-1]
