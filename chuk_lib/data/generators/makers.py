"""One maker for each type of problem: (random numbers, difficulty) -> a draft with an exact answer.

In every type a higher difficulty means larger numbers and from some level on a longer or trickier
form."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from random import Random

from chuk_lib.data.generators.problems import Draft, apply, exact
from chuk_lib.data.generators.words import word_problem

Maker = Callable[[Random, int], Draft]
_QUESTIONS = (
    "What is {}?",
    "Calculate {}.",
    "Compute {}.",
    "Find the value of {}.",
    "Work out {}.",
)


def addition(random: Random, difficulty: int) -> Draft:
    """`a+b=` with two numbers of `difficulty` digits each."""
    low, high = (10 ** (difficulty - 1) if difficulty > 1 else 0), 10**difficulty - 1
    a, b = random.randint(low, high), random.randint(low, high)
    return Draft(
        f"{a}+{b}=", f"{a} + {b}", ((f"{a} + {b}", Fraction(a + b)),), ("+", min(a, b), max(a, b))
    )


def arithmetic(random: Random, difficulty: int) -> Draft:
    """Two whole numbers and one operator; division, always without remainder, from level 2 on."""
    top = 20 if difficulty == 1 else 10**difficulty
    operator = random.choice("+-*" if difficulty == 1 else "+-*/")
    a, b = random.randint(1, top), random.randint(1, top)
    if operator == "*":
        b = random.randint(2, max(10, 10 ** (difficulty - 1)))
    elif operator == "/":
        b = random.randint(2, 10 ** max(1, difficulty // 2))
        a = b * random.randint(2, top // b)
    elif operator == "-" and difficulty == 1 and a < b:
        a, b = b, a
    value = apply(operator, Fraction(a), Fraction(b))
    operands = (min(a, b), max(a, b)) if operator in "+*" else (a, b)
    expression = f"{a} {operator} {b}"
    return _asked(random, expression, expression, value, (operator, *operands))


def fractions(random: Random, difficulty: int) -> Draft:
    """Two proper fractions (three at level 5). Level 1: one denominator; multiplication from 2,
    division from 3."""
    operator = random.choice("+-" if difficulty == 1 else "+-*" if difficulty == 2 else "+-*/")
    largest = (10, 12, 15, 30, 40)[difficulty - 1]
    first = _proper(random, random.randint(3, largest))
    second = _proper(random, first.denominator if difficulty == 1 else random.randint(2, largest))
    if difficulty == 1 and operator == "-" and first < second:
        first, second = second, first
    value = apply(operator, first, second)
    expression = f"({first}) {operator} ({second})"
    shown = expression if operator == "/" else f"{first} {operator} {second}"
    if difficulty < 5:
        ordered = sorted((first, second)) if operator in "+*" else [first, second]
        return _asked(random, shown, expression, value, ("fractions", operator, *map(str, ordered)))
    third, sign = _proper(random, random.randint(2, largest)), random.choice("+-")
    steps = ((expression, value), (f"({value}) {sign} ({third})", apply(sign, value, third)))
    text = random.choice(_QUESTIONS).format(f"({shown}) {sign} {third}")
    return Draft(
        text,
        f"({expression}) {sign} ({third})",
        steps,
        _key_of_three(operator, sign, first, second, third),
    )


def percentages(random: Random, difficulty: int) -> Draft:
    """A share of a number; any percentage from level 3, increases and decreases from level 4."""
    if difficulty == 1:
        percent, base = (
            random.choice((5, 10, 20, 25, 30, 40, 50, 60, 75, 80)),
            20 * random.randint(1, 20),
        )
    elif difficulty == 2:
        percent, base = 5 * random.randint(1, 19), random.randint(10, 500)
    else:
        percent, base = random.randint(1, 99), random.randint(10, 10**difficulty)
    kind = "of" if difficulty < 4 else random.choice(("of", "more", "less"))
    share = f"{percent} / 100 * {base}"
    part = Fraction(percent * base, 100)
    if kind == "of":
        text = random.choice(_QUESTIONS).format(f"{percent}% of {base}")
        key = ("percent", min(percent, base), max(percent, base))  # 25% of 40 is 40% of 25
        return Draft(text, share, ((share, part),), key, decimal=True)
    sign, word = ("+", "increased") if kind == "more" else ("-", "reduced")
    total = base + part if kind == "more" else base - part
    steps = ((share, part), (f"{base} {sign} {exact(part, True)}", Fraction(total)))
    text = random.choice(_QUESTIONS).format(f"{base} {word} by {percent}%")
    return Draft(
        text, f"{base} {sign} {share}", steps, ("percent", kind, percent, base), decimal=True
    )


def multi_step(random: Random, difficulty: int) -> Draft:
    """Two operations, three from level 3 on; each is one step of the solution."""
    top = (10, 20, 30, 60, 100)[difficulty - 1]
    a, b, c, d = (random.randint(2, top) for _ in range(4))
    if difficulty < 3:
        shape = random.choice(("(a+b)*c", "(a-b)*c", "a*b+c", "a*b-c"))
        return _two_steps(random, shape, a, b, c)
    sign = random.choice("+-")
    if random.random() < 0.5:
        left, right = (f"{a} * {b}", a * b), (f"{c} * {d}", c * d)
        last, value = sign, left[1] + right[1] if sign == "+" else left[1] - right[1]
    else:
        left, right = (f"{a} + {b}", a + b), (f"{c} {sign} {d}", c + d if sign == "+" else c - d)
        last, value = "*", left[1] * right[1]
    steps = _whole(left, right, (f"{_operand(left[1])} {last} {_operand(right[1])}", value))
    sides = [_side(left[0], a, b), _side(right[0], c, d)]
    key = ("multi", last, *map(str, sorted(sides) if last in "+*" else sides))
    shown = f"{left[0]} {last} {right[0]}" if last != "*" else f"({left[0]}) * ({right[0]})"
    return Draft(
        random.choice(_QUESTIONS).format(shown), f"({left[0]}) {last} ({right[0]})", steps, key
    )


def comparison(random: Random, difficulty: int) -> Draft:
    """The larger or smaller of two or three values, or how far two are apart; fractions at level 3,
    sums at 4."""
    values = _values_to_compare(random, difficulty)
    kind = random.choice(
        ("max", "min") if len(values) > 2 or difficulty == 4 else ("max", "min", "abs")
    )
    shown = [text for text, _ in values]
    key = ("compare", kind, *sorted(shown))
    if kind == "abs":
        difference = abs(values[0][1] - values[1][1])
        expression = f"abs({shown[0]} - {shown[1]})"
        return Draft(
            f"How far apart are {shown[0]} and {shown[1]}?",
            expression,
            ((expression, difference),),
            key,
        )
    two, many = ("larger", "largest") if kind == "max" else ("smaller", "smallest")
    value = (max if kind == "max" else min)(number for _, number in values)
    expression = f"{kind}({', '.join(shown)})"
    if len(values) > 2:
        text = f"Which is the {many}: {', '.join(shown[:-1])} or {shown[-1]}?"
    else:
        text = f"Which is {two}: {shown[0]} or {shown[1]}?"
    return Draft(
        text + (" Give its value." if difficulty == 4 else ""),
        expression,
        ((expression, value),),
        key,
    )


MAKERS: dict[str, Maker] = {
    "arithmetic": arithmetic,
    "fractions": fractions,
    "percentages": percentages,
    "word_problem": word_problem,
    "multi_step": multi_step,
    "comparison": comparison,
    "addition": addition,
}


def _asked(
    random: Random, shown: str, expression: str, value: Fraction, key: tuple[object, ...]
) -> Draft:
    return Draft(random.choice(_QUESTIONS).format(shown), expression, ((expression, value),), key)


def _proper(random: Random, denominator: int) -> Fraction:
    return Fraction(random.randint(1, denominator - 1), denominator)


def _key_of_three(
    operator: str, sign: str, first: Fraction, second: Fraction, third: Fraction
) -> tuple[object, ...]:
    """Sums in any order are the same problem: what is added and what is taken away, each sorted."""
    if operator in "+-":
        terms = [("+", first), (operator, second), (sign, third)]
        return ("fractions", *(f"{side}{value}" for side, value in sorted(terms)))
    ordered = sorted((first, second)) if operator == "*" else [first, second]
    return ("fractions", operator, *map(str, ordered), f"{sign}{third}")


def _operand(value: int) -> str:
    return str(value) if value >= 0 else f"({value})"


def _whole(*steps: tuple[str, int]) -> tuple[tuple[str, Fraction], ...]:
    return tuple((expression, Fraction(value)) for expression, value in steps)


def _side(expression: str, a: int, b: int) -> tuple[str, int, int]:
    """An operation with its numbers in an order that does not matter to it."""
    operator = expression.split()[1]
    return (operator, a, b) if operator == "-" else (operator, min(a, b), max(a, b))


def _two_steps(random: Random, shape: str, a: int, b: int, c: int) -> Draft:
    if shape.startswith("("):
        sign = shape[2]
        inner = a + b if sign == "+" else a - b
        expression = f"({a} {sign} {b}) * {c}"
        steps = _whole((f"{a} {sign} {b}", inner), (f"{_operand(inner)} * {c}", inner * c))
        numbers = (min(a, b), max(a, b)) if sign == "+" else (a, b)
    else:
        sign = shape[3]
        inner, numbers = a * b, (min(a, b), max(a, b))
        expression = f"{a} * {b} {sign} {c}"
        steps = _whole(
            (f"{a} * {b}", inner), (f"{inner} {sign} {c}", inner + c if sign == "+" else inner - c)
        )
    return Draft(
        random.choice(_QUESTIONS).format(expression),
        expression,
        steps,
        ("multi", shape, *numbers, c),
    )


def _values_to_compare(random: Random, difficulty: int) -> list[tuple[str, Fraction]]:
    """Two or three different values with the text that shows them."""
    while True:
        if difficulty in (3, 5):
            largest, many = (12, 2) if difficulty == 3 else (40, 3)
            found = [_proper(random, random.randint(3, largest)) for _ in range(many)]
            values = [(str(value), value) for value in found]
        elif difficulty == 4:
            sums = [(random.randint(10, 200), random.randint(10, 200)) for _ in range(2)]
            values = [(f"{a} + {b}", Fraction(a + b)) for a, b in sums]
        else:
            numbers = [
                random.randint(1, 99 if difficulty == 1 else 999) for _ in range(1 + difficulty)
            ]
            values = [(str(number), Fraction(number)) for number in numbers]
        if len({value for _, value in values}) == len(values):
            return values
