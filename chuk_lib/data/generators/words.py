"""Word problems: one operation in a small story; from level 3 on a sentence with a number that does
not matter."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from chuk_lib.data.generators.problems import Draft, apply

_STORIES = (
    (
        "+",
        "{name} has {a} {items} and buys {b} more. How many {items} does {name} have?",
        "{items}",
    ),
    (
        "+",
        "{name} read {a} pages on Monday and {b} pages on Tuesday. How many pages is that?",
        "pages",
    ),
    (
        "-",
        "{name} has {a} {items} and gives {b} of them to {other}. How many {items} are left?",
        "{items}",
    ),
    ("-", "A shop had {a} {items} and sold {b}. How many {items} remain?", "{items}"),
    ("*", "A box holds {a} {items}. How many {items} are in {b} boxes?", "{items}"),
    ("*", "A train travels {a} km every hour. How far does it travel in {b} hours?", "km"),
    ("*", "A ticket costs {a} dollars. How much do {b} tickets cost?", "dollars"),
    (
        "/",
        "{name} shares {a} {items} equally among {b} friends. How many {items} does each get?",
        "{items}",
    ),
)
_ASIDES = (
    "{other} is {n} years old.",
    "The shop opened {n} years ago.",
    "{other} lives {n} km away.",
    "It was {n} degrees outside.",
    "There are {n} houses in the street.",
    "The bus came {n} minutes late.",
)
_NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gita",
    "Hugo",
    "Ines",
    "Jon",
    "Kira",
    "Leo",
    "Mia",
    "Noor",
)
_ITEMS = (
    "apples",
    "books",
    "marbles",
    "coins",
    "pencils",
    "shells",
    "stamps",
    "cards",
    "stones",
    "beads",
)


def word_problem(random: Random, difficulty: int) -> Draft:
    """A story with two numbers that matter. Both grow with the difficulty."""
    operator, story, unit = random.choice(_STORIES)
    a, b = _numbers(random, operator, difficulty)
    name, other = random.sample(_NAMES, 2)
    words = {"name": name, "other": other, "items": random.choice(_ITEMS)}
    text = story.format(a=a, b=b, **words)
    if difficulty >= 3:
        aside = random.choice(_ASIDES).format(n=random.randint(2, 90), **words)
        text = f"{aside} {text}" if random.random() < 0.5 else _before_the_question(text, aside)
    value = apply(operator, Fraction(a), Fraction(b))
    operands = (min(a, b), max(a, b)) if operator in "+*" else (a, b)
    expression = f"{a} {operator} {b}"
    key = ("word", operator, *operands)
    return Draft(text, expression, ((expression, value),), key, unit.format(**words))


def _numbers(random: Random, operator: str, difficulty: int) -> tuple[int, int]:
    top = 25 * difficulty * difficulty
    a, b = random.randint(2, top), random.randint(2, top)
    if operator == "-":
        return (a, b) if a > b else (b + 1, a)
    if operator in "*/":
        b = random.randint(2, 6 + 6 * difficulty)
    return (a * b, b) if operator == "/" else (a, b)


def _before_the_question(text: str, aside: str) -> str:
    facts, _, question = text.rpartition(". ")
    return f"{facts}. {aside} {question}"
