"""Reading answers: equal answers become equal strings, and no text makes the reading fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core import answers

READERS: dict[str, Callable[[str], str | None]] = {
    "number": answers.read_number,
    "expression": answers.read_expression,
    "choice": lambda text: answers.read_choice(text, None),
    "option": lambda text: answers.read_choice(text, "yes"),
    "words": answers.read_words,
    "json": answers.read_json,
}
FRAGMENTS = (
    *("\\boxed{", "\\frac", "\\text{", "\\(", "\\)", "$", "{", "}", "####", "answer is", "=", "A", "(B)"),
    *(
        "-",
        "1",
        ",234",
        ".5",
        "/",
        "0",
        "e9",
        "½",
        "×10^",
        "%",
        "[",
        '"',
        "```",
        "```json\n",
        " ",
        "\n",
        "\x00",
        "\ud800",
    ),
)
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("So 3 + 4 = 7 apples", "7"),
        ("She has 5 bags.\n#### 1,234", "1234"),
        ("\\boxed{5} and then the check: 6", "5"),
        ("first \\boxed{4}, corrected: \\boxed{7}", "7"),
        ("a box cut short: \\boxed{5} \\boxed{6", "5"),
        ("\\boxed{x = -3}", "-3"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("**Answer:** 42", "42"),
        ("Answer:\n\n42\n", "42"),
        ("The answer is below.\nIt is 9", "9"),
        ("The answer would be 12 because 3 * 4 is 12 and not 13", "12"),
    ],
)
def test_the_stated_number_counts_and_otherwise_the_last(text: str, number: str) -> None:
    answer = answers.read_number(text)

    assert answer == number


@pytest.mark.parametrize(
    ("spellings", "number"),
    [
        (["1234", "1,234", "1{,}234", "1\u202f234", "1234.00", "1.234e3", "1.234 \\times 10^{3}", "$1,234"], "1234"),
        (["0.5", ".5", "1/2", "\\frac{1}{2}", "\\dfrac12", "½", "2/4", "0.50", "5e-1"], "0.5"),
        (["-5", "\u22125", "-$5", "$-5", "-5.0", "= - 5"], "-5"),
        (["50%", "50\\%", "50", "50.0 %"], "50"),
        (["1.5", "1 1/2", "1½", "3/2"], "1.5"),
        (["1/3", "2/6", "\\tfrac{1}{3}"], "1/3"),
        (["100000", "1,00,000", "100,000", "1e5"], "100000"),
        (["0", "-0", "0.00", "0/7"], "0"),
    ],
)
def test_spellings_of_one_number_are_one_answer(spellings: list[str], number: str) -> None:
    read = {answers.read_number(f"It comes to {spelling}.") for spelling in spellings}

    assert read == {number}


@pytest.mark.parametrize(
    ("text", "number"),
    [("5-3", "3"), ("1,2,3", "3"), ("in 1,234, or so", "1234"), ("12,34", "34"), ("72kg", "72"), ("7 per 10%", "10")],
)
def test_signs_and_commas_between_numbers_belong_to_none(text: str, number: str) -> None:
    answer = answers.read_number(text)

    assert answer == number


@pytest.mark.parametrize("text", ["", "none", "x2", "v1.2.3", "1e400", "9" * 500, "3/0", "NaN", "inf"])
def test_what_is_no_number_in_range_is_not_read(text: str) -> None:
    answer = answers.read_number(text)

    assert answer is None


@given(st.fractions().filter(lambda value: len(str(value)) < answers.DIGITS_MAX))
def test_a_number_in_canonical_form_reads_back_as_itself(value: Fraction) -> None:
    canonical = answers.canonical_number(value)

    assert answers.number_of(canonical) == value
    assert answers.read_number(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("so \\boxed{\\frac{x}{2}} it is", "\\frac{x}{2}"),
        ("The answer is $x + 1$.", "x + 1"),
        ("we get \\(a\\) and then \\[b^2\\]", "b^2"),
        ("it is 12", "12"),
        ("#### $\\sqrt{2}$", "\\sqrt{2}"),
    ],
)
def test_an_expression_is_read_as_it_is_written(text: str, expression: str) -> None:
    answer = answers.read_expression(text)

    assert answer == expression


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "B) Paris",
        "**B**",
        "The answer is (B).",
        "The answer is B because A is wrong",
        "\\boxed{\\text{B}}",
        "#### b",
        "A) is wrong.\nC) is wrong.\nThat leaves (B)",
        "Only one fits: B",
    ],
)
def test_a_letter_is_read_however_it_is_given(text: str) -> None:
    answer = answers.read_choice(text, "B")

    assert answer == "B"


@pytest.mark.parametrize("text", ["", "A cat sat on the mat", "I think so", "none of them", "ABC"])
def test_words_are_no_letters(text: str) -> None:
    answer = answers.read_choice(text, None)

    assert answer is None


@pytest.mark.parametrize("text", ["yes", "Yes.", "Yes, because it is even", "The answer is **yes**.", "\\boxed{Yes}"])
def test_an_option_in_words_is_read_up_to_its_end(text: str) -> None:
    answer = answers.read_choice(text, "Yes")

    assert answer == "yes"


@pytest.mark.parametrize("text", ["Paris", " paris \n", "“Paris”.", "**Paris**", "The answer is Paris.", "ＰＡＲＩＳ"])
def test_case_blanks_and_punctuation_around_words_do_not_matter(text: str) -> None:
    answer = answers.read_words(text)

    assert answer == "paris"


def test_signs_that_carry_meaning_stay() -> None:
    folded = [answers.fold(text) for text in ("-5", "5%", "C++", "a.b", "?!")]

    assert folded == ["-5", "5%", "c++", "a.b", "?!"]


@pytest.mark.parametrize(
    "text",
    [
        '{"b": 1.0, "a": [1, 2]}',
        'Here it is:\n```json\n{"a": [1, 2], "b": 1}\n```\nDone.',
        'I found 3 things: {"a":[1,2.0],"b":1} and [4]',
        'First {not json} then {"b":1,"a":[1,2]}',
    ],
)
def test_the_first_json_value_is_read_in_one_form(text: str) -> None:
    answer = answers.read_json(text)

    assert answer == '{"a":[1,2],"b":1}'


@pytest.mark.parametrize("text", ["", "nope", "5 apples", "true story", "NaN", "[1e400]", "[" * 100_000, "9" * 5000])
def test_what_holds_no_json_value_is_not_read(text: str) -> None:
    answer = answers.read_json(text)

    assert answer is None


def test_thoughts_before_the_answer_are_not_read() -> None:
    said = answers.final_part("<think>maybe 5</think>\n\nIt is 4")

    assert said == "It is 4"


@pytest.mark.parametrize("reader", READERS)
@given(text=st.text() | fragments)
def test_no_text_makes_a_reader_fail_and_every_answer_can_be_stored(reader: str, text: str) -> None:
    answer = READERS[reader](text)

    assert answer is None or (answer.encode() and "\x00" not in answer)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "\n",
        "1",
        "1,",
        "9.",
        "\\boxed{",
        "answer: ",
        "####",
        "$",
        "\\(",
        "[",
        '{"a":',
        "```\n",
        "\\frac{",
        "A ",
        "(",
        "-",
    ],
)
def test_reading_takes_no_longer_than_the_length_allows(reader: str, piece: str) -> None:
    text = piece * (50_000 // len(piece))
    began = time.process_time()

    READERS[reader](text)

    assert time.process_time() - began < 3
