"""Games of TextArena for one player: `--env textarena:GuessTheNumber-v0`."""

from __future__ import annotations

import random
from typing import Any

from chuk_lib.env.adapters import as_text, behind, seed_of
from chuk_lib.errors import ConfigError
from chuk_lib.utils.extras import need


def environment(name: str) -> type:
    """The class of a game. Raises ConfigError for one that is not there, or not for one player."""
    arena = need(f"environment `textarena:{name}`", "textarena", "textarena", "textarena")
    raw = name if name.endswith(("-raw", "-train")) else f"{name}-raw"

    class TextArenaGame:
        """A game whose moves are text. What is random in its middle draws from Python's global
        generator; its start is the seed's alone."""

        def __init__(self) -> None:
            self._game = arena.make(raw)
            self._over = False

        def reset(self, **row: Any) -> str:
            state = random.getstate()
            self._game.reset(num_players=1, seed=seed_of(row))
            random.setstate(state)
            self._over = False
            return behind(row, self._seen())

        def act(self, action: str) -> str:
            """Make a move in the game.

            Args:
                action: The move, as the rules of the game ask for it.
            """
            if self._over:
                return "The game is over."
            self._over, _ = self._game.step(as_text(action))
            if self._over:
                _, told = self._game.close()
                return f"The game is over. {told[0].get('reason', '')}".strip()
            return self._seen()

        def get_reward(self) -> float:
            rewards, _ = self._game.close()
            return float((rewards or {}).get(0, 0.0))

        def _seen(self) -> str:
            _, messages = self._game.get_observation()
            return "\n".join(text for sender, text, _ in messages if sender == arena.GAME_ID)

    try:
        TextArenaGame().reset(seed=0)
    except Exception as error:  # a game may fail with anything: files to download, players
        words = f"`textarena:{name}` cannot be played: {error}"
        raise ConfigError(words, "take a game for one player that needs no download") from None
    return TextArenaGame
