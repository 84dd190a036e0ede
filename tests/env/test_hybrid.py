"""The hybrid environment: its grammar, its rewards, what a policy sees of it, and Gymnasium's own
check."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from random import Random

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from chuk_lib.env.actions import Action, parse_actions
from chuk_lib.env.expert_tool import expert_tool
from chuk_lib.env.hybrid_env import hybrid_env_class
from chuk_lib.env.orchestrator import Orchestrator, OrchestratorConfig
from chuk_lib.env.task import HybridTask
from chuk_lib.env.tasks import calculate, math_tasks, tasks_of
from chuk_lib.errors import ConfigError, DataError, ModelError
from chuk_lib.experts.config import ExpertConfig
from chuk_lib.experts.registry import create_expert
from tests.conftest import RunChuk

MADE = "chuk_lib.env.hybrid_env:chuk/Hybrid-v0"
TAUGHT = """THINK: I need to work this out.
TOOL: math_solve(expression="12 + 30")
Result: 42.0
ANSWER: 42"""


def test_a_row_of_the_predecessor_is_read_in_all_its_lines() -> None:
    assert parse_actions(TAUGHT) == [
        Action("THINK", "I need to work this out."),
        Action("TOOL", name="math_solve", arguments={"expression": "12 + 30"}),
        Action("Result", "42.0"),
        Action("ANSWER", "42"),
    ]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('f(a="x, y)", b=2)', {"a": "x, y)", "b": 2}),
        (r'f(a="say \"hi\"\n", b=\'it\')'.replace("\\'", "'"), {"a": 'say "hi"\n', "b": "it"}),
        ("f(a=-1.5e3, b=007, c=.5)", {"a": -1500.0, "b": 7, "c": 0.5}),
        ("f(a=true, b=None, c=False)", {"a": True, "b": None, "c": False}),
        ('f(a=[1, {"k": "),"}], b=max(1, 2))', {"a": [1, {"k": "),"}], "b": "max(1, 2)"}),
        ("f( a = two words , b = x )", {"a": "two words", "b": "x"}),
        ("f()", {}),
        ('f(a="one\ntwo")', {"a": "one\ntwo"}),
    ],
)
def test_arguments_are_read_with_quotes_and_types(text: str, arguments: dict[str, object]) -> None:
    (action,) = parse_actions(f"TOOL: {text}")
    assert action.error == ""
    assert action.arguments == arguments
    assert [type(value) for value in action.arguments.values()] == [
        type(value) for value in arguments.values()
    ]
    assert parse_actions(str(action)) == [action]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("f", "a call is written"),
        ("f(1)", "written key=value"),
        ("f(a=1", "closing ) is missing"),
        ('f(a="x)', 'quote " is not closed'),
        ("f(a=1) and more", "`and more` stands behind"),
        ("f(a=1, a=2)", "given twice"),
        ("f(a=)", "value is missing"),
        ("f(a=[1)", "closing ) is missing"),
        ('f(a="x" b=1)', "a comma or ) is missing"),
        ("f(a=[x])", "is no JSON"),
    ],
)
def test_what_is_no_call_is_an_action_with_a_reason(text: str, error: str) -> None:
    (action,) = parse_actions(f"DELEGATE: {text}")
    assert error in action.error
    assert action.text == text


def test_any_arguments_survive_writing_and_reading() -> None:
    random = Random(0)
    letters = "ab1 ,()\"'\\=\n[]{}:é\t"
    for _ in range(300):
        values = {
            f"k{index}": random.choice(
                [
                    "".join(random.choices(letters, k=random.randrange(8))),
                    random.randrange(-99, 99),
                    random.random(),
                    [1, "a,)"],
                    None,
                    True,
                ]
            )
            for index in range(random.randrange(4))
        }
        action = Action("TOOL", name="f", arguments=values)
        assert parse_actions(f"think\n{action}\nANSWER: x")[1] == action


def solved(max_steps: int = 50, results_shown: int = 5) -> Orchestrator:
    def fail(x: int = 0) -> str:
        """Fail."""
        raise ValueError("no luck")

    def hang() -> str:
        """Hang."""
        time.sleep(30)
        return ""

    return Orchestrator(
        {"math_solve": calculate, "fail": fail, "hang": hang, "long": lambda: "x" * 5000},
        {"helper": lambda steps=3: {"success": steps == 20, "steps": steps}},
        OrchestratorConfig(tool_call_timeout=0.3, max_steps=max_steps, results_shown=results_shown),
    )


def play(orchestrator: Orchestrator, row: dict[str, object], *texts: str) -> list[dict[str, float]]:
    orchestrator.reset(HybridTask.from_row(row))
    return [dict(orchestrator.step(text).parts) for text in texts]


SUM = {"prompt": "12 + 30?", "goal": {"expected_answer": "42"}}


def test_a_taught_answer_calls_its_tool_and_is_right() -> None:
    orchestrator = solved()
    orchestrator.reset(HybridTask.from_row(SUM))
    done = orchestrator.step(TAUGHT)
    assert done.terminated
    assert done.info == {"steps": 1, "tool_calls": 1, "made_up": 1, "correct": True}
    assert done.parts == {"step": -0.01, "answer": 1.0, "fast": 0.5, "few_tools": 0.2}
    assert done.reward == pytest.approx(1.69)
    assert done.observation.happened == (('TOOL: math_solve(expression="12 + 30")', "42"),)
    with pytest.raises(RuntimeError, match="reset"):
        orchestrator.step("ANSWER: 42")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ANSWER: 42", {"answer": 1.0, "fast": 0.5, "few_tools": 0.2}),
        ("ANSWER: 42.0", {"answer": 1.0, "fast": 0.5, "few_tools": 0.2}),
        ("ANSWER: 142", {"answer": -0.5}),
        ("ANSWER: 41 42 43", {"answer": -0.5}),
        ("ANSWER:", {"answer": -0.5}),
        ("TOOL: fail()", {"tool_error": -0.2}),
        ("TOOL: hang()", {"tool_error": -0.2}),
        ("TOOL: math_solve(expr=1)", {"invalid": -0.1}),
        ("TOOL: nothing(a=1)", {"invalid": -0.1}),
        ("TOOL: math_solve(", {"invalid": -0.1}),
        ("DELEGATE: nobody()", {"invalid": -0.1}),
        ("DELEGATE: helper(steps=99)", {"expert_success": 0.2}),
        ("TOOL: delegate_helper()", {"expert_success": 0.2}),
        ("DELEGATE: helper(steps=2)", {}),
        ("no action at all", {}),
        ("", {}),
    ],
)
def test_each_step_has_its_worth_in_parts(text: str, parts: dict[str, float]) -> None:
    assert play(solved(), SUM, text) == [{"step": -0.01, **parts}]


def test_constraints_count_once_at_the_end_and_being_fast_pays_only_for_who_is_right() -> None:
    row = SUM | {"constraints": {"max_tool_calls": 1, "required_tools": ["fail"]}}
    call = 'TOOL: math_solve(expression="1")'
    parts = play(solved(), row, call, call, "ANSWER: 1")
    assert parts == [
        {"step": -0.01},
        {"step": -0.01},
        {"step": -0.01, "answer": -0.5, "violation": -1.0},
    ]


def test_out_of_steps_is_a_truncation_and_costs_once() -> None:
    orchestrator = solved(max_steps=2)
    orchestrator.reset(HybridTask.from_row(SUM))
    assert not orchestrator.step("THINK: hm").truncated
    last = orchestrator.step("THINK: hm")
    assert last.truncated
    assert not last.terminated
    assert last.parts == {"step": -0.01, "timeout": -2.0}


def test_calls_are_answered_from_memory_only_when_asked_for() -> None:
    for cached, calls in ((True, 1), (False, 2)):
        seen: list[int] = []
        tools = {"count": lambda seen=seen: str(seen.append(1) or len(seen))}
        orchestrator = Orchestrator(tools, config=OrchestratorConfig(cache_tool_calls=cached))
        play(orchestrator, SUM, "TOOL: count()", "TOOL: count()")
        assert len(seen) == calls


def test_a_long_result_is_cut_with_a_mark_and_old_ones_are_counted() -> None:
    orchestrator = solved(results_shown=1)
    orchestrator.reset(HybridTask.from_row(SUM))
    orchestrator.step("TOOL: long()")
    text = orchestrator.step("TOOL: long()").observation.text()
    assert "[… 3,000 more characters cut]" in text
    assert "(1 earlier steps are not shown.)" in text


def test_no_prompt_holds_the_answer() -> None:
    secret = "7349218"
    rows: list[dict[str, object]] = [
        {"prompt": "Which number?", "goal": {"expected_answer": secret}},
        {"prompt": "Which number?", "goal": {"target": float(secret), "tolerance": 0.5}},
        {"prompt": "Which number?", "answer": secret},
        {
            "prompt": "Which number?",
            "metadata": {"answer": secret},
            "response": f"ANSWER: {secret}",
        },
        {"prompt": "Which number?", "response": f"THINK: x\nANSWER: {secret}"},
    ]
    for row in rows:
        env = gymnasium.make(MADE, tasks=[row], tools={"f": lambda: "nothing"})
        seen = [env.reset(seed=0)]
        for text in ("THINK: a", "TOOL: f()", "TOOL: g()", "DELEGATE: x(", "ANSWER: 1"):
            seen.append(env.step(text))
        assert secret not in repr(seen)
        assert secret not in repr(env.unwrapped.orchestrator.reset(HybridTask.from_row(row)))
        env.reset(seed=0)
        assert env.step(f"ANSWER: {secret}")[4]["correct"]


def test_gymnasium_finds_nothing_wrong_and_a_seed_is_a_task() -> None:
    env = gymnasium.make(MADE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    first, second = env.reset(seed=5)[0], env.reset(seed=5)[0]
    assert first == second != env.reset(seed=6)[0]
    env.reset(options={"task": SUM})
    text, *_ = env.step('TOOL: math_solve(expression="12 + 30")')
    assert "Result: 42" in text
    assert env.step("ANSWER: 42")[2]
    assert hybrid_env_class() is type(env.unwrapped)


def test_built_in_tasks_are_solved_by_their_own_answers() -> None:
    for number in range(30):
        task = math_tasks(number)
        assert task.goal.closeness(task.goal.expected_answer or "") == 1.0


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", "14"), ("1/3 + 0.5", "5/6"), ("max(2, abs(-7))", "7"), ("-(2 - 5)", "3")],
)
def test_the_calculator_is_exact(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize("text", ["2 **9", "__import__('os')", "a", "1 +", "(1).real", "1" * 501])
def test_the_calculator_runs_nothing_else(text: str) -> None:
    with pytest.raises(ValueError):
        calculate(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no", "line 2 is not JSON"),
        ("[]", "line 2 is no object"),
        ("{}", "line 2 has no prompt"),
        ('{"prompt": "x", "gaol": {}}', "line 2: unknown key `gaol`"),
        ('{"prompt": "x", "goal": {"answer": 1}}', "line 2, goal: unknown key `answer`"),
    ],
)
def test_a_wrong_task_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(SUM) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        tasks_of(path)


def test_an_expert_is_a_tool() -> None:
    sizes = ExpertConfig(name="cart", obs_dim=2, discrete_actions=True, num_actions=2, hidden_dim=8)
    expert = create_expert("gru", sizes)
    with pytest.raises(ModelError, match="which environment"):
        expert_tool(expert, "cart")
    expert.about = {"env": "gym:CartPole-v1", "observe": ["0", "2"]}
    tool = expert_tool(expert, "cart", success=5)
    assert tool.__name__ == "delegate_cart"
    orchestrator = Orchestrator(experts={"cart": tool})
    orchestrator.reset(HybridTask.from_row(SUM))
    first = orchestrator.step("DELEGATE: cart(seed=1)")
    assert orchestrator.step("TOOL: delegate_cart(seed=1)").parts == first.parts
    (_, one), (_, other) = orchestrator.step("THINK: done").observation.happened
    assert one == other
    found = json.loads(one)
    assert found["success"]
    assert 5 <= found["steps"] == found["return"] <= 20
    assert np.isclose(first.reward, 0.19)
    with pytest.raises(ConfigError, match="another width"):
        expert_tool(create_expert("gru", sizes), "cart", env="gym:CartPole-v1")


def test_tasks_are_played_from_a_pipe(run_chuk: RunChuk, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(SUM | {"prompt": f"{i}?"}) + "\n" for i in range(2)))
    texts = 'TOOL: math_solve(expression="6*7")\nANSWER: 42\n\nANSWER: 41\n'
    played = run_chuk(
        "env", "hybrid", "--tasks", file, "--episodes", 3, "--max-steps", 2, "--json", input=texts
    )
    assert played.returncode == 0, played.stderr
    found = json.loads(played.stdout)
    first, second, third = found["episodes"]
    assert [one["prompt"] for one in found["episodes"]] == ["0?", "1?", "0?"]
    assert first["steps"][0]["results"] == ["42"]
    assert [one["ended"] for one in (first, second, third)] == ["answered", "answered", "left"]
    assert [one["correct"] for one in (first, second, third)] == [True, False, False]
    assert found["correct"] == 1
    assert "42" not in played.stderr
    shown = run_chuk("env", "hybrid", "--tasks", file, input="THINK: a\nTHINK: b\n")
    assert "- math_solve(expression): Work out" in shown.stderr
    assert shown.stdout == "reward -0.02, 0 of 1 right\n"


def test_a_model_plays(run_chuk: RunChuk, tiny_model_dir: Path) -> None:
    options = ("--model", tiny_model_dir, "--max-tokens", 8, "--max-steps", 2, "--json")
    first, again, hot = (
        json.loads(run_chuk("env", "hybrid", *options, *more).stdout)["episodes"][0]
        for more in ((), (), ("--temperature", 2, "--seed", 1))
    )
    assert first == again
    assert [one["ended"] for one in (first, hot)] == ["out of steps"] * 2
    assert [step["text"] for step in first["steps"]] != [step["text"] for step in hot["steps"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--expert", "cart"), "is no NAME=RUN"),
        (("--expert", "cart=nowhere"), "holds no expert"),
        (("--mcp-tool", "x"), "need an `--mcp`"),
        (("--tasks", "nowhere.jsonl"), "no such file"),
    ],
)
def test_a_wrong_option_is_explained(
    run_chuk: RunChuk, options: tuple[str, str], message: str
) -> None:
    refused = run_chuk("env", "hybrid", *options, input="")
    assert refused.returncode in (1, 2)
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
