"""Numbers as they are written, exactly: what is equal, what is not, and what is no number at
all."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest

from chuk_lib.rewards import Completions, load_rewards
from chuk_lib.rewards.numbers import quantities_in, read_quantity, same_quantity
from chuk_lib.rewards.numeric import find_quantity, last_boxed

EQUAL: list[tuple[Any, Any]] = [
    ("42", "42"),
    ("42", 42),
    ("42.0", 42),
    ("42.", "42"),
    ("042", "42"),
    ("+42", "42"),
    (".5", "0.5"),
    ("1/2", "0.5"),
    ("2/4", "1/2"),
    ("-1/2", "-0.5"),
    ("1 1/2", "3/2"),
    ("1½", "1.5"),
    ("¾", "0.75"),
    ("7⁄8", "0.875"),
    ("0.333333", "1/3"),
    ("0.6666667", "2/3"),
    ("10/5", "2"),
    ("3 / 4", "3/4"),
    ("1,234", "1234"),
    ("1,234,567.89", "1234567.89"),
    ("1 234 567", "1234567"),
    ("1\u202f234", "1234"),
    ("1'234'567", "1234567"),
    ("1_000", "1000"),
    (r"1{,}000", "1000"),
    (r"1\,000", "1000"),
    ("-1,234.5", "-1234.5"),
    ("50%", "0.5"),
    ("50 %", "50"),
    ("50%", "50 percent"),
    (r"50\%", "50%"),
    ("0.5", "50%"),
    ("12.5%", "1/8"),
    ("5 km", "5"),
    ("5", "5 apples"),
    ("5 km", "5000 m"),
    ("5 km", "5 kilometers"),
    ("30 min", "0.5 hours"),
    ("90 km/h", "25 m/s"),
    ("1 m^2", "10000 cm²"),
    ("2 square meters", "2 m^2"),
    ("3 cubic cm", "3 cm^3"),
    ("$5", "5 dollars"),
    ("5 dollars", "500 cents"),
    ("$1,200.50", "1200.5"),
    ("-$5", "$-5"),
    ("€3", "3 EUR"),
    ("90°", r"90^\circ"),
    (r"90^{\circ}", "90 degrees"),
    ("36 inches", "1 yard"),
    ("2 weeks", "14 days"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", "1/2"),
    (r"\dfrac{-3}{4}", "-0.75"),
    (r"-\tfrac{3}{4}", "-3/4"),
    (r"2\frac{1}{2}", "2.5"),
    (r"$\frac{3}{4}$", "0.75"),
    (r"\(7\)", "7"),
    (r"3 \text{ cm}", "3 cm"),
    (r"5\ \mathrm{kg}", "5000 g"),
    (r"$$1.5$$", "3/2"),
    ("x = 5", "5"),
    ("≈ 3", "3"),
    ("1e3", "1000"),
    ("1.5E-3", "0.0015"),
    (r"6.02 \times 10^{23}", "6.02e23"),
    ("2×10³", "2000"),
    ("3*10^-2", "0.03"),
    ("5 million", "5000000"),
    ("2.5 thousand", "2,500"),
    ("−7", "-7"),
    ("-0", "0"),
    (0.1, "0.1"),
    (1e-9, "1e-9"),
]
DIFFERENT: list[tuple[Any, Any]] = [
    ("16", "6"),
    ("6", "16"),
    ("42", "-42"),
    ("1000000", "1000001"),
    ("0.33", "1/3"),
    ("0.5", "0.6"),
    ("1/2", "1/3"),
    ("1,234", "1.234"),
    ("50%", "5"),
    ("50%", "0.05"),
    ("5 km", "5 m"),
    ("5 km", "5 kg"),
    ("5%", "5 km"),
    ("$5", "5 €"),
    ("5 m", "5 m^2"),
    ("5 m/s", "5 km/h"),
    ("1 1/2", "11/2"),
    ("1e3", "100"),
    ("5 million", "5"),
    ("1e-9", "2e-9"),
    ("1000000.5", "1000000.4"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("0", "0.001"),
]
NO_NUMBERS: list[Any] = [
    "",
    "   ",
    "twelve",
    "abc",
    "A",
    "nan",
    "inf",
    "-inf",
    "NaN",
    "Infinity",
    "1.2.3",
    "12:30",
    "1/2/2024",
    "2024-01-05",
    "x",
    "2x",
    "x1",
    "3D",
    "3rd",
    "1st",
    "5 or 6",
    "(1,2)",
    "1, 2",
    "[3]",
    "0x10",
    "1/0",
    "--5",
    "+-5",
    "1e999999999",
    "9" * 1000,
    "1,23",
    "12,34,5",
    "3+4",
    "3 + 4 = 7",
    "2^10",
    r"\frac{x}{2}",
    r"\frac{1}{\frac{1}{2}}",
    r"\sqrt{4}",
    "1.5e",
    "e5",
    ".",
    "-",
    "%",
    "$",
    None,
    True,
    [],
    {"a": 1},
]


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=str)
def test_equal(one: Any, other: Any) -> None:
    first, second = read_quantity(one), read_quantity(other)
    assert first is not None
    assert second is not None
    assert same_quantity(first, second)
    assert same_quantity(second, first)


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=str)
def test_different(one: Any, other: Any) -> None:
    first, second = read_quantity(one), read_quantity(other)
    assert first is not None
    assert second is not None
    assert not same_quantity(first, second)
    assert not same_quantity(second, first)


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: str(text)[:20])
def test_no_numbers(text: Any) -> None:
    assert read_quantity(text) is None


IN_TEXT = {
    "10-3 is 7": "10 3 7",
    "It is -3.": "-3",
    "a -3 b": "-3",
    "6*7=42.": "6 7 42",
    "3-4": "3 4",
    "x1 and 2x and v1.2.3, the 3rd at 12:30 on 1/2/2024": "",
    "x^2 + y_1 + 5": "5",
    "The price is $1,200.50, or 50% of it.": "2401/2 50",
    "1, 2,3 and 4": "1 2 3 4",
    r"\frac{1}{2} cup of $x$": "1/2",
    "5km and 2 h": "5 2",
    "x^{2} and 7": "7",
}


@pytest.mark.parametrize(("text", "want"), IN_TEXT.items(), ids=IN_TEXT)
def test_numbers_in_a_text(text: str, want: str) -> None:
    assert [found.value for found in quantities_in(text)] == [
        Fraction(part) for part in want.split()
    ]


ANSWERS = {
    "First 3, then 5, so 8 apples.": "8",
    r"So 3 then \boxed{5}, not 7": "5",
    r"\boxed{1} or \boxed{\frac{1}{2}}": "1/2",
    r"\boxed{\text{about }7}": None,
    r"\boxed{x} so 5": None,
    r"\boxed{\boxed{3}}": "3",
    r"\boxed{5": None,
    r"\boxed 5.": "5",
    "12 + 60\n#### 72": "72",
    "#### 1,000 dollars\nand 7 more words": "1000",
    "<answer>The total is 42 apples.</answer> Thanks, 7 of 7.": "42",
    "<answer>none</answer> 5": None,
    "The answer is 42. I checked it 3 times.": "42",
    "**Answer:** 42": "42",
    "The answer to the 2nd question is 6*7 = 42.": "42",
    "ANSWER: 5/6": "5/6",
    "Final answer = 1.5\n(12 steps)": "1.5",
    "no number at all": None,
    "": None,
}


@pytest.mark.parametrize(("text", "want"), ANSWERS.items(), ids=ANSWERS)
def test_the_answer_of_a_completion(text: str, want: str | None) -> None:
    found = find_quantity(text)
    assert (None if found is None else found.value) == (None if want is None else Fraction(want))


def test_where_the_answer_is_looked_for() -> None:
    text = r"It is \boxed{5}. Or 7"
    found = {where: find_quantity(text, where) for where in ("auto", "marked", "last", "whole")}
    assert {where: got and int(got.value) for where, got in found.items()} == {
        "auto": 5,
        "marked": 5,
        "last": 7,
        "whole": None,
    }
    assert find_quantity("It is 7", "marked") is None
    assert find_quantity("7", "whole")


def test_nested_braces_of_a_box() -> None:
    assert last_boxed(r"a \boxed{\frac{1}{\sqrt{2}}} b") == r"\frac{1}{\sqrt{2}}"
    assert last_boxed("no box {here}") is None


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "1,", "9", "####", r"\frac{", "<answer>", "answer is ", "1 ", "-", "{,}"]
)
def test_endless_repetitions_do_not_take_long(piece: str) -> None:
    began = time.process_time()
    find_quantity(piece * 6000)
    assert time.process_time() - began < 2


def scores(spec: str, texts: list[str], answer: list[Any]) -> list[float | None]:
    batch = Completions([""] * len(texts), [*texts], [[1]] * len(texts), {"answer": answer})
    return [
        None if score != score else score
        for score in load_rewards([spec]).score(batch)[:, 0].tolist()
    ]


def test_the_reward() -> None:
    assert scores("numeric", ["It is 72.", "It is 71.", "words"], ["so 70 + 2\n#### 72"] * 3) == [
        1.0,
        0.0,
        0.0,
    ]
    assert scores("numeric", ["5", "5", "5", "0.5"], ["no number", None, True, 0.5]) == [
        None,
        None,
        None,
        1.0,
    ]
    assert scores("numeric", ["1 2 3 4 5 6"], ["3"]) == [0.0]
    assert scores("numeric:where=marked", ["It is 3", r"\boxed{3}"], ["3", 3]) == [0.0, 1.0]
    assert scores("numeric:tolerance=0.01", ["0.334"], ["1/3"]) == [1.0]
    assert scores("numeric:column=answer,where=whole", ["3", "it is 3"], [3, 3]) == [1.0, 0.0]
