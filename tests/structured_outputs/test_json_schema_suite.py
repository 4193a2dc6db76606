"""The JSON Schema Test Suite: whatever schema compiles must allow its valid instances, and must refuse all others."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from following import accepts

from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.tokenizer import TextTokenizer

SUITE: dict[str, list[Any]] = json.loads((Path(__file__).parent / "data" / "json_schema_suite.json").read_text())

# Keywords that are refused wherever they stand.
REFUSED = {
    "contains",
    "dependentRequired",
    "dependentSchemas",
    "if-then-else",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "refRemote",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
}

# Instances that a schema allows and its grammar does not: other notations of a number, control characters, formats as
# mere annotations, and rare notations of addresses.
NOT_ALLOWED = {
    "float zero is valid",
    "float one is valid",
    "float -2.0 is valid",
    "float is valid",
    "[0.0] is valid",
    "[1.0] is valid",
    "a float with zero fractional part is an integer",
    "zero-width whitespace matches",
    "Line tabulation matches",
    "Non-whitespace control matches",
    "a quoted string with a space in the local part is valid",
    "a quoted string with a double dot in the local part is valid",
    "a quoted string with a @ in the local part is valid",
    "an IPv6-address-literal after the @ is valid",
    "mixed format with the ipv4 section as decimal octets",
    "mixed format with double colons between the sections",
    "mixed format with leading double colons (ipv4-mapped ipv6 address)",
    "a long valid ipv6",
}

# Instances that a grammar allows although the schema refuses them, all of optional parts of the suite: days and seconds
# that only some years and times have, and one character that is a space in ECMAScript only.
WRONGLY_ALLOWED = {
    "zero-width whitespace does not match",
    "a invalid date string with 29 days in February (normal)",
    "2021 is not a leap year",
}


@pytest.mark.parametrize("name", SUITE)
def test_compiled_schemas_judge_as_the_suite_does(compiler: GrammarCompiler, neox: TextTokenizer, name: str) -> None:
    wrong = []
    for group, schema, cases in SUITE[name]:
        spec = GrammarSpec("json_schema", json.dumps(schema))
        try:
            compiled = compiler.compile(spec)
        except RequestError:
            continue
        for case, instance, valid in cases:
            texts = (json.dumps(order, ensure_ascii=False) for order in itertools.islice(_orders(instance), 200))
            judged = any(accepts(compiled.start(), neox.encode(text), neox.eos_token_ids[0]) for text in texts)
            if judged != valid and not _excused(case, judged):
                wrong.append(f"{group}: {case}: {judged}")
    assert wrong == []


@pytest.mark.parametrize("name", sorted(REFUSED & set(SUITE)))
def test_unsupported_keywords_are_refused_by_name(compiler: GrammarCompiler, name: str) -> None:
    keywords = ["if", "then", "else"] if name == "if-then-else" else ["present in a registry", name]
    for _, schema, _ in SUITE[name]:
        if not any(keyword in json.dumps(schema) for keyword in keywords):
            continue
        with pytest.raises(RequestError) as refusal:
            compiler.compile(GrammarSpec("json_schema", json.dumps(schema)))
        assert any(keyword in str(refusal.value) for keyword in [*keywords, "minProperties"])


def _excused(case: str, judged: bool) -> bool:
    if judged:
        return case in WRONGLY_ALLOWED or "leap second" in case
    return case in NOT_ALLOWED or "is only an annotation by default" in case or r"\u" in case


def _orders(value: Any) -> Iterator[Any]:
    """Yield a value with its keys in some other orders: a grammar has them in the schema's."""
    if isinstance(value, dict):
        orders = {key: list(itertools.islice(_orders(part), 6)) for key, part in value.items()}
        for keys in itertools.islice(itertools.permutations(value), 24):
            for parts in itertools.islice(itertools.product(*(orders[key] for key in keys)), 24):
                yield dict(zip(keys, parts, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.islice(itertools.product(*map(_orders, value)), 24))
    else:
        yield value
