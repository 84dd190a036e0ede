"""Environments of other libraries are played like a user's own class: the same games for the same
seed, moves and rewards as the library has them, one line for what cannot be played.

The libraries are the real ones; an OpenEnv server is stood in for by one that speaks its protocol
(recorded from openenv-core 0.3.0), for the package brings a web interface along."""

from __future__ import annotations

import json
import random
import string
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import gymnasium
import pytest
from websockets.sync.server import serve

from chuk_lib.data.tokenizers.calls import Call
from chuk_lib.env.adapters import ADAPTERS
from chuk_lib.env.files import has_reward, load_environment
from chuk_lib.env.tools import toolbox, tools_of
from chuk_lib.errors import ConfigError
from tests.conftest import RunChuk

ROW = {"prompt": "Play.", "seed": 3}


def begun(name: str, **row: Any) -> tuple[Any, Any, str]:
    """An environment at its start, its tools, and what is seen first."""
    made = load_environment(name, {})
    assert has_reward(made)
    one = made()
    return one, toolbox(tools_of(one), 10.0), one.reset(**(row or ROW)) or ""


def said(box: Any, name: str, **arguments: Any) -> str:
    return str(box.call(Call(name, arguments)).text)


def test_a_game_of_textarena_is_that_of_its_seed() -> None:
    pytest.importorskip("textarena")
    state = random.getstate()
    game, box, seen = begun("textarena:GuessTheNumber-v0")
    assert random.getstate() == state
    assert "between 1 and 20" in seen
    wanted = game._game.state.game_state["game_number"]
    assert begun("textarena:GuessTheNumber-v0")[0]._game.state.game_state["game_number"] == wanted
    assert said(box, "act", action=f"[{wanted - 1}]") == "The target number is higher."
    assert game.get_reward() == 0
    # A model writes a list where the game reads text in brackets.
    assert said(box, "act", action=[wanted]).startswith("The game is over. Congratulations")
    assert game.get_reward() == 1
    assert said(box, "act", action="[1]") == "The game is over."
    game.reset(**ROW)
    assert game.get_reward() == 0
    secrets = {
        begun("textarena:GuessTheNumber-v0", prompt=f"Play {number}.")[0]._game.state.game_state[
            "game_number"
        ]
        for number in range(12)
    }
    assert len(secrets) > 3


def test_a_problem_of_reasoning_gym_may_be_tried_again() -> None:
    pytest.importorskip("reasoning_gym")
    from chuk_lib.data.generators.gym import problems

    (row,) = problems("chain_sum", 1, seed=5)
    one, box, seen = begun("reasoning-gym:chain_sum", **row)
    assert seen == ""
    assert said(box, "answer", text="no") == "wrong; 3 tries left"
    assert one.get_reward() == 0
    assert said(box, "answer", text=int(row["answer"])) == "right"
    assert one.get_reward() == 1
    other, _, seen = begun("reasoning-gym:chain_sum")
    assert seen == "\n\n" + other._entry["question"]
    for left in (3, 2, 1, 0):
        assert said(box := toolbox(tools_of(other), 1.0), "answer", text="no").endswith(
            f"{left} tries left"
        )
    assert said(box, "answer", text=other._entry["answer"]) == "That was the end."


class Which(gymnasium.Env):
    """One of three is right."""

    def __init__(self, numbers: bool = True) -> None:
        self.observation_space = gymnasium.spaces.Text(100, charset=string.printable)
        discrete, text = gymnasium.spaces.Discrete(3, start=1), gymnasium.spaces.Text(3)
        self.action_space = discrete if numbers else text

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.wanted = int(self.np_random.integers(1, 4))
        return "Which of three?", {}

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        won = int(action) == self.wanted
        return ("yes" if won else "no"), float(won) - 0.25, won, False, {}


@pytest.mark.parametrize("numbers", [True, False])
def test_a_gymnasium_environment_of_text(numbers: bool) -> None:
    name = f"chuk-test/Which{int(numbers)}-v0"
    if name not in gymnasium.registry:
        gymnasium.register(name, Which, kwargs={"numbers": numbers})
    one, box, seen = begun(f"gym:{name}")
    assert seen == "\n\nWhich of three?"
    kinds = box.schemas[0]["function"]["parameters"]["properties"]["action"]
    assert kinds["type"] == ("integer" if numbers else "string")
    wanted = one._env.unwrapped.wanted
    wrong = wanted % 3 + 1
    assert said(box, "act", action=wrong) == "no"
    assert one.get_reward() == -0.25
    assert said(box, "act", action=wanted) == "yes\nThe episode is over."
    assert one.get_reward() == 0.5
    assert said(box, "act", action=wanted) == "The episode is over."
    assert '"error"' in said(begun(f"gym:{name}")[1], "act", action="seventeen")


ACTION = {
    "additionalProperties": False,
    "properties": {
        "metadata": {"type": "object"},
        "number": {"title": "Number", "type": "integer"},
    },
    "required": ["number"],
    "title": "GuessAction",
    "type": "object",
}


@pytest.fixture
def openenv() -> Iterator[str]:
    """A server in which the number of the seed is to be guessed."""

    def session(socket: Any) -> None:
        secret = 0
        for line in socket:
            asked = json.loads(line)
            data = asked["data"]
            if asked["type"] == "reset":
                secret, seen, done = data["seed"], "guess", False
            elif set(data) != {"number"}:
                error = {"message": "Invalid message", "code": "VALIDATION_ERROR"}
                socket.send(json.dumps({"type": "error", "data": error}))
                continue
            else:
                done = data["number"] == secret
                seen = "right" if done else "wrong"
            told = {"observation": {"text": seen}, "reward": float(done), "done": done}
            socket.send(json.dumps({"type": "observation", "data": told}))

    def schema(connection: Any, request: Any) -> Any:
        if request.path != "/schema":
            return None
        return connection.respond(HTTPStatus.OK, json.dumps({"action": ACTION}))

    with serve(session, "127.0.0.1", 0, process_request=schema) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"openenv:http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def test_an_environment_of_an_openenv_server(openenv: str) -> None:
    one, box, seen = begun(openenv)
    assert seen == '\n\n{"text": "guess"}'
    function = box.schemas[0]["function"]
    assert (function["name"], list(function["parameters"]["properties"])) == ("step", ["number"])
    assert said(box, "step", number=1) == '{"text": "wrong"}'
    assert said(box, "step", guess=1) == '{"error": "Invalid message"}'
    assert said(box, "step", number=3) == '{"text": "right"}'
    assert one.get_reward() == 1
    assert said(box, "step", number=3) == "The episode is over."
    one.reset(**ROW)
    assert one.get_reward() == 0
    one._socket.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("textarena:TicTacToe-v0", "cannot be played: The number of players has to be 2"),
        ("textarena:Nothing-v0", "cannot be played: Environment Nothing-v0-raw not found"),
        ("gym:Nothing-v7", "no environment `Nothing-v7`"),
        ("gym:CartPole-v1", "is not of text: it shows Box and takes Discrete"),
        ("openenv:http://127.0.0.1:9", "does not answer"),
        ("openenv:nowhere", "does not answer"),
        ("verifiers:thing", "is not FILE.py:NAME"),
    ],
)
def test_what_cannot_be_played_is_one_line(name: str, words: str) -> None:
    if name.startswith("textarena"):
        pytest.importorskip("textarena")
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")) as found:
        load_environment(name, {})
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", [*ADAPTERS])
def test_a_library_that_is_missing_is_one_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chuk_lib.utils.extras.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError) as found:
        load_environment(f"{kind}:Any-v0", {})
    assert "install" in (found.value.hint or "")


def test_an_adapter_is_played_through_the_command(run_chuk: RunChuk) -> None:
    pytest.importorskip("textarena")
    row = json.dumps(ROW)
    done = run_chuk("env", "play", "textarena:GuessTheNumber-v0", "--row", row, "--json", input="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["turns"][0]["content"].startswith("Play.\n\nYou are Player 0.")
    assert found["reward"] == 0
