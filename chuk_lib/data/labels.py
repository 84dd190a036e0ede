"""Good and bad answers in unequal numbers: what to say, and the weights that balance them."""

from __future__ import annotations


def label_notes(
    good: int, bad: int, good_weight: float = 1.0, bad_weight: float = 1.0
) -> tuple[str, ...]:
    """What a user should know about `good` and `bad` answers that are learned from with these
    weights; nothing when they balance. The bounds are TRL's: the weighted good ones should count 1
    to 1.33 times as much as the bad ones (Ethayarajh et al. 2024, equation 8)."""
    if not good or not bad:
        kind = "bad" if not good else "good"
        return (
            (
                f"all {good + bad:,} answers are labelled {kind}: without the other kind there is"
                " nothing to tell apart"
            ),
        )
    ratio = round(bad * bad_weight / good, 2), round(bad * bad_weight / good * 1.33, 2)
    other = round(good * good_weight / bad / 1.33, 2), round(good * good_weight / bad, 2)
    if good == bad or ratio[0] <= good_weight <= ratio[1] or other[0] <= bad_weight <= other[1]:
        return ()
    return (
        (
            f"{good:,} good answers, {bad:,} bad ones: to balance them set desirable_weight between"
            f" {ratio[0]:g} and {ratio[1]:g}, or undesirable_weight between {other[0]:g} and"
            f" {other[1]:g} (one of them, not both)"
        ),
    )
