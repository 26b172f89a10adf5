"""Verdicts: what each verifier reads, accepts and refuses, and that nothing makes one fail or hang."""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fractions import Fraction
from multiprocessing import get_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import InvalidRequest
from scheduler.types import Sample, Verdict, VerifierSpec
from scheduler.verification import check_spec, judge, label, read_answer

CITY_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/name"}},
        "required": ["city"],
        "$defs": {"name": {"type": "string", "pattern": "^[A-Z]"}},
    }
)
REFERENCES = {
    Verdict.EXACT: "Paris",
    Verdict.NUMERIC: "1,234",
    Verdict.MATH: "\\frac{1}{2}",
    Verdict.REGEX: r"total: (\d+)",
    Verdict.CHOICE: "B",
    Verdict.JSON_SCHEMA: CITY_SCHEMA,
}


def spec(kind: str, reference: str | None = None) -> VerifierSpec:
    return VerifierSpec(kind=Verdict(kind), reference=reference)


@pytest.mark.parametrize(
    ("kind", "reference", "right", "wrong"),
    [
        ("exact", "Paris", "The answer is **paris**.", "Lyon"),
        ("numeric", "1,234", "so it makes 1234.0", "12345"),
        ("numeric", "3 * 24 = 72\n#### 72", "That is 72 clips", "73"),
        ("numeric", "$18.00", "She earns \\boxed{18}", "1800"),
        ("math", "\\frac{1}{2}", "we get $0.5$", "$\\frac{1}{3}$"),
        ("math", "x^2+2x+1", "\\boxed{(x+1)^2}", "\\boxed{(x+2)^2}"),
        ("math", "2*sqrt(2)", "The answer is $\\sqrt{8}$", "$\\sqrt{9}$"),
        ("math", "pi/4", "\\boxed{\\frac{\\pi}{4}}", "\\boxed{\\pi}"),
        ("math", "5", "\\boxed{x = 5}", "\\boxed{x = 6}"),
        ("math", "\\{1, 2\\}", "\\boxed{\\{2, 1\\}}", "\\boxed{\\{2, 3\\}}"),
        ("regex", r"total: (\d+)", "the total: 12", "the sum: 12"),
        ("choice", "(b)", "The answer is B.", "C"),
        ("choice", "yes", "Yes, it is", "No, it is not"),
        ("json_schema", CITY_SCHEMA, 'Sure:\n```json\n{"city": "Oslo"}\n```', '{"city": "oslo"}'),
    ],
)
def test_a_right_answer_is_accepted_and_a_wrong_one_is_not(kind: str, reference: str, right: str, wrong: str) -> None:
    verifier = spec(kind, reference)

    verdicts = (judge(right, verifier), judge(wrong, verifier), judge("", verifier))

    assert verdicts == (True, False, False)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("math", ["\\boxed{(x+1)^2}", "$x^2 + 2x + 1$", "The answer is $1 + 2x + x^2$."]),
        ("math", ["$\\sqrt{8}$", "\\boxed{2\\sqrt{2}}", "\\boxed{x = \\sqrt 8}"]),
        ("math", ["\\boxed{0.5}", "\\boxed{\\tfrac12}", "The answer is 1/2"]),
        ("math", ["\\boxed{\\text{Blue}}", "\\boxed{\\text{Blue}} "]),
        ("numeric", ["1,000", "\\boxed{1000}", "#### 1000.0"]),
        ("choice", ["(c)", "The answer is C"]),
        ("json_schema", ['{"a":1,"b":2}', '{"b": 2.0, "a": 1}']),
        ("exact", ["Blue.", "the answer is blue"]),
    ],
)
def test_equal_answers_are_one_vote(kind: str, texts: list[str]) -> None:
    votes = {read_answer(text, spec(kind)) for text in texts}

    assert len(votes) == 1
    assert None not in votes


def test_a_pattern_answers_with_its_group_or_else_its_whole_match() -> None:
    verifiers = [spec("regex", r"total: (\d+)"), spec("regex", r"total: \d+"), spec("regex", r"total: \d+(x)?")]

    read = [read_answer("the total: 12!", verifier) for verifier in verifiers]

    assert read == ["12", "total: 12", "total: 12"]


def test_without_a_verifier_the_answer_is_the_folded_text() -> None:
    answer = read_answer("  Hello,\n WORLD! ", None)

    assert answer == "hello world"


def test_a_label_fills_in_the_answer_and_the_verdict() -> None:
    sample = Sample(text="It is 12", tokens=4)

    labelled = label(sample, spec("numeric", "12"))

    assert (labelled.answer, labelled.correct) == ("12", True)
    assert (labelled.text, labelled.tokens) == (sample.text, sample.tokens)


@pytest.mark.parametrize("verifier", [None, spec("numeric")])
def test_without_a_reference_nothing_is_called_right_or_wrong(verifier: VerifierSpec | None) -> None:
    labelled = label(Sample(text="12", tokens=1), verifier)

    assert (labelled.answer, labelled.correct) == ("12", None)


def test_thoughts_are_not_taken_for_the_answer() -> None:
    verdict = judge("<think>could be \\boxed{5}</think>It is 4.", spec("numeric", "4"))

    assert verdict


@pytest.mark.parametrize("kind", list(Verdict))
@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=200))
def test_no_text_makes_a_verifier_fail(kind: Verdict, text: str) -> None:
    sample = Sample(text=text, tokens=1)

    labelled = label(sample, VerifierSpec(kind=kind, reference=REFERENCES[kind]))

    assert labelled.correct in (True, False)
    assert labelled.answer is None or labelled.answer.encode()


@settings(deadline=None, max_examples=100)
@given(text=st.text(alphabet="\\frac{}^_()[]$ -+*/=<>,.0123xyzpisqrtboed|&!%", max_size=80))
def test_no_formula_makes_the_mathematical_verifier_fail(text: str) -> None:
    verdict = judge(f"\\boxed{{{text}}}", spec("math", "x + 1"))

    assert verdict in (True, False)


@pytest.mark.parametrize(
    "formula", ["9^{9^{9^{9}}}", "9**9**9", "(x+y+z)^{5000}", "100000!", "(" * 400 + "1" + ")" * 400]
)
def test_a_formula_that_would_take_forever_is_given_up(formula: str) -> None:
    began = time.monotonic()

    verdict = judge(f"\\boxed{{{formula}}}", spec("math", "2"))

    assert not verdict
    assert time.monotonic() - began < 60


def test_after_a_formula_was_given_up_the_next_is_judged_as_ever() -> None:
    judge("\\boxed{9^{9^{9^{8}}}}", spec("math", "2"))

    verdict = judge("\\boxed{1 + y}", spec("math", "y + 1"))

    assert verdict


def test_a_pattern_that_backtracks_forever_elsewhere_is_matched_in_linear_time() -> None:
    began = time.monotonic()

    verdict = judge("a" * 50_000 + "b", spec("regex", r"(a+)+$"))

    assert not verdict
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a+)+$"},
        {"$ref": "#"},
        {
            "allOf": [{"$ref": "#/$defs/n0"}],
            "$defs": {f"n{i}": {"allOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(40)} | {"n40": True},
        },
    ],
)
def test_a_schema_that_would_take_forever_accepts_nothing(schema: object) -> None:
    began = time.monotonic()

    verdict = judge(json.dumps("a" * 5000 + "b"), spec("json_schema", json.dumps(schema)))

    assert not verdict
    assert time.monotonic() - began < 60


def test_many_threads_judge_alike() -> None:
    texts = [f"\\boxed{{x + {n} + 0y}}" for n in range(12)]

    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda text: judge(text, spec("math", "3 + x")), texts))

    assert verdicts == [n == 3 for n in range(12)]


@pytest.mark.parametrize("kind", list(Verdict))
def test_a_sound_verifier_is_accepted(kind: Verdict) -> None:
    check_spec(kind, REFERENCES[kind])
    check_spec(kind, None)


@pytest.mark.parametrize(
    ("kind", "reference", "complaint"),
    [
        ("exact", "  ", "is empty"),
        ("exact", "x" * 100_001, "100001 characters"),
        ("numeric", "twelve", "no number"),
        ("numeric", "NaN", "no number"),
        ("numeric", "1e400", "no number"),
        ("numeric", "9" * 500, "no number"),
        ("numeric", "12 or 13", "no number"),
        ("math", "x" * 1001, "1001 characters"),
        ("regex", "(", "missing"),
        ("regex", r"(a)\1", "no back-references"),
        ("regex", "a(?=b)", "no look-around"),
        ("regex", "(((a{1000}){1000}){1000})", "refused"),
        ("regex", "\ud800", "refused"),
        ("regex", "x" * 1001, "1001 characters"),
        ("json_schema", "{", "no JSON"),
        ("json_schema", "[" * 100_000, "no JSON"),
        ("json_schema", '{"minimum": NaN}', "no JSON"),
        ("json_schema", "5", "JSON schema is wrong"),
        ("json_schema", '{"type": "strin"}', r"wrong at \$.type"),
        ("json_schema", '{"$ref": "http://example.com/schema.json"}', "nothing is fetched"),
        ("json_schema", '{"properties": {"a": {"$ref": "#/$defs/missing"}}}', "nothing is fetched"),
    ],
)
def test_a_verifier_that_could_judge_nothing_is_refused_with_its_reason(
    kind: str, reference: str, complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        check_spec(Verdict(kind), reference)


def test_what_a_schema_only_quotes_is_no_reference() -> None:
    check_spec(Verdict.JSON_SCHEMA, json.dumps({"const": {"$ref": "http://example.com/schema.json"}}))


def math(text: str, reference: str) -> bool:
    return judge(text, VerifierSpec(kind=Verdict.MATH, reference=reference))


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{50\%}", "50%"),
        (r"\boxed{1{,}234}", "1,234"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"\boxed{5\ \mathrm{cm}}", "5 cm"),
        (r"\boxed{3\text{ m}^2}", r"3 \text{ m}^{2}"),
        (r"\boxed{1\frac{1}{2}}", r"\frac{3}{2}"),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2"),
        (r"so x = 5. $\boxed{x=5}$", "5"),
    ],
)
def test_math_accepts_the_right_answer_however_it_is_written(text: str, reference: str) -> None:
    assert math(text, reference)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"\boxed{5\text{ cm}}", "5 km"),
        (r"\boxed{5\text{ m}^2}", r"5\text{ m}^3"),
        (r"\boxed{1,234}", "234"),
        (r"\boxed{50\%}", "51%"),
        (r"\boxed{0.1000001}", "0.1"),
        (r"\boxed{0.3333}", "1/3"),
        (r"\boxed{3.14}", r"\pi"),
        (r"\boxed{(1,2)}", "(2,1)"),
        (r"\boxed{5,6}", "5"),
        (r"\boxed{1}\boxed{2}", "1"),
        (r"\boxed{1\frac{1}{2}}", "11/2"),
        ("no idea", "0"),
    ],
)
def test_math_refuses_a_wrong_answer_however_near(text: str, reference: str) -> None:
    assert not math(text, reference)


WRITTEN = (
    r"\boxed{{{p}/{q}}}",
    r"\boxed{{\frac{{{p}}}{{{q}}}}}",
    r"The answer is ${p}/{q}$.",
    "so\n#### {p}/{q}",
)
FRACTIONS = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=1000)


@settings(max_examples=50)
@given(said=FRACTIONS, right=FRACTIONS, nudge=st.booleans(), written=st.sampled_from(WRITTEN))
def test_math_accepts_a_number_if_and_only_if_it_is_the_reference(
    said: Fraction, right: Fraction, nudge: bool, written: str
) -> None:
    said = right + Fraction(1, 10**9) if nudge else said

    verdicts = [
        math(written.format(p=each.numerator, q=each.denominator), f"{right.numerator}/{right.denominator}")
        for each in (said, right)
    ]

    assert verdicts == [said == right, True]


def test_math_judges_the_same_in_threads_and_in_another_process() -> None:
    cases = [(rf"\boxed{{\sqrt{{{n * n * 2}}}}}", rf"{n + n % 2}\sqrt{{2}}") for n in range(1, 9)]
    texts, references = zip(*cases, strict=True)

    with ThreadPoolExecutor(8) as threads, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        in_threads = list(threads.map(math, texts, references))
        elsewhere = processes.submit(math, *cases[1]).result()

    assert in_threads == [n % 2 == 0 for n in range(1, 9)]
    assert elsewhere
