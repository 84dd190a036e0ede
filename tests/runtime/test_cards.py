"""One process sees one NVIDIA card, and the launcher all that the user lets it see."""

from __future__ import annotations

from pathlib import Path

import pytest

from chuk_lib.runtime import cards


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The device files of a machine with three cards, and a process that has taken none."""
    monkeypatch.setattr(cards, "_taken", [])
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "sees", "takes"),
    [
        ({}, ["0", "1", "2"], "0"),
        ({"CUDA_VISIBLE_DEVICES": "2, 0"}, ["2", "0"], "2"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["1"], "1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, [], ""),
        ({"MLX_RANK": "1"}, ["0", "1", "2"], None),
    ],
)
def test_a_process_takes_the_first_card(
    given: dict[str, str], sees: list[str], takes: str | None, devices: Path
) -> None:
    environment = dict(given)
    assert cards.in_sight(environment, devices) == sees
    cards.take_first(environment, devices)
    assert environment.get("CUDA_VISIBLE_DEVICES") == takes
    assert cards.in_sight(environment, devices) == sees  # the launcher still sees them all


def test_a_machine_without_cards_sees_none(tmp_path: Path, devices: Path) -> None:
    environment: dict[str, str] = {}
    (tmp_path / "empty").mkdir()
    cards.take_first(environment, tmp_path / "empty")
    assert (environment, cards.in_sight({}, tmp_path / "empty")) == ({}, [])
