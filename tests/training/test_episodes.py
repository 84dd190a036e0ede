"""Players: episodes in which others than the model have a word, from the player to the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.data.prompt_dataset import PromptDataset, PromptRow
from chuk_lib.data.types import Source
from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models import load_model
from chuk_lib.training import resume, train
from chuk_lib.training.completions_log import read_completions
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.online.episode import Episode, GroupPrompt, Turn
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.grpo_trainer import GRPOTrainer
from chuk_lib.training.online.ppo_config import PPOConfig
from chuk_lib.training.online.ppo_trainer import PPOTrainer
from tests.training.conftest import weights_of
from tests.training.grpo_runs import make_config, prompt_rows
from tests.training.ppo_runs import PPORuns

TRAINERS = {"grpo": GRPOTrainer, "ppo": PPOTrainer}


class AskAgain:
    """The model writes, a tool says the tokens `said`, the model writes again."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        said: Sequence[int] = (30, 31, 32),
        unread: float = 0.0,
    ) -> None:
        self.model, self.tokenizer, self.said = model, tokenizer, list(said)

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        """See `Player`."""
        first = self.written(
            [one.asked.ids for one in prompts], [one.group for one in prompts], n, sampling
        )
        asked = [prompt for prompt in prompts for _ in range(n)]
        texts = [
            prompt.asked.ids + one.ids.tolist() + self.said
            for prompt, one in zip(asked, first, strict=True)
        ]
        groups = [prompt.group * n + one.member for prompt, one in zip(asked, first, strict=True)]
        second = self.written(texts, groups, 1, replace(sampling, seed=sampling.seed ^ 1))
        return [self.joined(*parts) for parts in zip(asked, first, second, strict=True)]

    def written(self, texts: Any, groups: Any, n: int, sampling: SamplingConfig) -> list[Any]:
        return rollouts(self.model, self.tokenizer, texts, sampling, group_size=n, numbers=groups)

    def joined(self, prompt: GroupPrompt, one: Any, other: Any) -> Episode:
        """Ids as sampled and said, a mask of who did it, and log-probs of the sampled ones."""
        said = np.array(self.said, np.int32)
        parts = [np.ones(len(one.ids)), np.zeros(len(said)), np.ones(len(other.ids))]
        logps = [one.logps, np.zeros(len(said)), other.logps]
        turns = (Turn("assistant", one.text), Turn("tool", "no."), Turn("assistant", other.text))
        return Episode(
            prompt,
            one.member,
            np.concatenate([one.ids, said, other.ids]),
            np.concatenate(parts).astype(np.float32),
            np.concatenate(logps).astype(np.float32),
            turns,
            other.reason,
        )


class Script:
    """Plays what another player played, with `change` made to each episode."""

    def __init__(
        self, episodes: list[Episode], change: Callable[[Episode], Episode] = lambda one: one
    ) -> None:
        self.episodes = [change(one) for one in episodes]

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        return [replace(one, prompt=prompts[index // n]) for index, one in enumerate(self.episodes)]


def settings(algorithm: str, folder: Path, model: Path, **changes: Any) -> Any:
    if algorithm == "grpo":
        shared = {
            "beta": 0.1,
            "num_iterations": 2,
            "importance_sampling_mode": "token_mask",
            "max_steps": 4,
        }
        return make_config(folder, model, **(shared | changes))
    return PPORuns(folder, model).config(**({"max_steps": 4} | changes))


def played(algorithm: str, folder: Path, model_dir: Path) -> list[Episode]:
    """One group of episodes for each prompt of the first step."""
    config: GRPOConfig | PPOConfig = settings(algorithm, folder, model_dir)
    model, tokenizer = load_model(model_dir, dtype="float32")
    dataset = PromptDataset(prompt_rows(), tokenizer)
    prompts = [GroupPrompt(row, row, dataset[row]) for row in range(config.prompts_per_step)]
    return AskAgain(model, tokenizer).play(prompts, config.num_generations, config.sampling(0))


def gradient(
    algorithm: str, folder: Path, model_dir: Path, player: Script
) -> tuple[dict[str, mx.array], float]:
    """The gradient of the second of a step's updates (nothing is applied), and its loss weight."""
    config = settings(algorithm, folder, model_dir)
    model, tokenizer = load_model(model_dir, dtype="float32")
    trainer = TRAINERS[algorithm](model, tokenizer, config, player=player)
    dataset = PromptDataset(prompt_rows(), tokenizer)
    prepare_model(model, trainer.config)
    learner = trainer.make_algorithm(dataset, trainer.plan(dataset))
    _, update, *_ = learner.updates(0)
    total = None
    for batch in update.micro_batches:
        _, part = nn.value_and_grad(
            learner.model, lambda model, arrays: learner.loss(model, arrays).total
        )(learner.model, batch)
        flat = dict(tree_flatten(part))
        total = (
            flat if total is None else {name: total[name] + value for name, value in flat.items()}
        )
    return total, update.weight


@pytest.mark.parametrize("algorithm", TRAINERS)
def test_what_is_given_for_a_tool_s_tokens_changes_no_gradient(
    algorithm: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Log-probs of tokens that the model did not write are not read, whatever stands there."""
    episodes = played(algorithm, tmp_path, tiny_model_dir)

    def with_nonsense(one: Episode) -> Episode:
        return replace(one, logps=np.where(one.mask > 0, one.logps, np.nan).astype(np.float32))

    want, weight = gradient(algorithm, tmp_path, tiny_model_dir, Script(episodes))
    got, other = gradient(algorithm, tmp_path, tiny_model_dir, Script(episodes, with_nonsense))
    assert weight == other
    assert any(mx.abs(value).max().item() > 1e-4 for value in want.values())
    for name, value in want.items():
        assert mx.array_equal(value, got[name]), name


@pytest.mark.parametrize("algorithm", TRAINERS)
def test_a_tool_s_last_word_is_learned_from_by_nobody(
    algorithm: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """A tool that has the last word is behind all that was written: what it says, and how much,
    changes no bit of the losses' gradient but for rounding."""
    episodes = played(algorithm, tmp_path, tiny_model_dir)

    def ending(said: Sequence[int]) -> Callable[[Episode], Episode]:
        def change(one: Episode) -> Episode:
            ids, rest = (
                np.concatenate([one.ids, np.array(said, np.int32)]),
                np.zeros(len(said), np.float32),
            )
            return replace(
                one, ids=ids, mask=np.append(one.mask, rest), logps=np.append(one.logps, rest)
            )

        return change

    want, weight = gradient(algorithm, tmp_path, tiny_model_dir, Script(episodes))
    for said in ([40, 41], [50, 51], [9] * 6):
        got, other = gradient(algorithm, tmp_path, tiny_model_dir, Script(episodes, ending(said)))
        assert weight == other
        for name, value in want.items():
            np.testing.assert_allclose(
                np.array(value), np.array(got[name]), atol=2e-5, err_msg=f"{name} {said}"
            )


@pytest.mark.parametrize("algorithm", TRAINERS)
def test_a_run_of_two_turns_and_its_resume(
    algorithm: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    whole = train(algorithm, settings(algorithm, tmp_path, tiny_model_dir), make_player=AskAgain)
    lines = list(read_completions(whole.run_dir / "completions.jsonl"))
    assert [turn["role"] for turn in lines[0]["turns"]] == ["assistant", "tool", "assistant"]
    first, _, second = (turn["text"] for turn in lines[0]["turns"])
    assert lines[0]["completion"] == f"{first}\n{second}"
    assert all(line["tokens"] <= 2 * 8 for line in lines)
    assert any(line["advantage"] for line in lines)
    config = settings(algorithm, tmp_path, tiny_model_dir, output=str(tmp_path / "part"))
    calls = iter(range(9))
    part = train(algorithm, config, make_player=AskAgain, should_stop=lambda: next(calls) >= 1)
    assert part.reason == "stopped"
    with pytest.raises(ConfigError, match="another player than before"):
        resume(part.run_dir)
    rest = resume(part.run_dir, make_player=AskAgain)
    ours, theirs = weights_of(whole.run_dir), weights_of(rest.run_dir)
    assert all(mx.array_equal(ours[name], theirs[name]) for name in ours)
    assert list(read_completions(rest.run_dir / "completions.jsonl")) == lines


def test_the_sampler_s_log_probs_are_those_that_the_loss_finds(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Log-probs of both turns in one forward over the whole text are what was sampled turn by
    turn."""
    result = train(
        "grpo", settings("grpo", tmp_path, tiny_model_dir, max_steps=1), make_player=AskAgain
    )
    assert result.metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert result.metrics["completions/max_length"] <= 2 * 8


@pytest.mark.parametrize("algorithm", TRAINERS)
def test_a_player_that_gives_something_else_is_refused(
    algorithm: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    class Forgets(AskAgain):
        def play(
            self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
        ) -> list[Episode]:
            return super().play(prompts, n, sampling)[1:]

    with pytest.raises(TrainingError, match="the player gave 7 episodes"):
        train(algorithm, settings(algorithm, tmp_path, tiny_model_dir), make_player=Forgets)
    prompt = GroupPrompt(0, 0, PromptRow("", [1], {}, Source("", 0)))

    class Nothing(AskAgain):
        def play(self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig) -> Any:
            return None

    (tmp_path / "nothing").mkdir()
    with pytest.raises(TrainingError, match="the player gave 0 episodes"):
        train(
            algorithm,
            settings(algorithm, tmp_path / "nothing", tiny_model_dir),
            make_player=Nothing,
        )
    with pytest.raises(TrainingError, match="3 tokens, a mask of 2 and 3 log-probs"):
        Episode(prompt, 0, np.arange(3), np.ones(2), np.zeros(3), (), "eos")


@pytest.mark.parametrize("algorithm", TRAINERS)
@pytest.mark.parametrize("token", [-1, 99_999])
def test_a_token_that_the_model_does_not_have_is_refused(
    algorithm: str, token: int, tmp_path: Path, tiny_model_dir: Path
) -> None:
    class Strange(AskAgain):
        def joined(self, prompt: GroupPrompt, one: Any, other: Any) -> Episode:
            made = super().joined(prompt, one, other)
            return replace(made, ids=np.append(made.ids[:-1], token))

    with pytest.raises(
        TrainingError, match=f"the player gave token id {token}; the model has 0 to"
    ):
        train(algorithm, settings(algorithm, tmp_path, tiny_model_dir), make_player=Strange)


def test_lists_are_as_good_as_arrays(tmp_path: Path, tiny_model_dir: Path) -> None:
    class Lists(AskAgain):
        def joined(self, prompt: GroupPrompt, one: Any, other: Any) -> Episode:
            made = super().joined(prompt, one, other)
            return replace(
                made, ids=made.ids.tolist(), mask=made.mask.tolist(), logps=made.logps.tolist()
            )

    runs = [
        train(
            "grpo",
            settings("grpo", tmp_path, tiny_model_dir, name=player.__name__),
            make_player=player,
        )
        for player in (AskAgain, Lists)
    ]
    ours, theirs = (weights_of(done.run_dir) for done in runs)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_only_what_plays_takes_a_player(tmp_path: Path, tiny_model_dir: Path) -> None:
    from chuk_lib.training import SFTConfig

    data = settings("grpo", tmp_path, tiny_model_dir).data
    config = SFTConfig(model=str(tiny_model_dir), data=data, output=str(tmp_path / "sft"))
    with pytest.raises(ConfigError, match="sft plays no episodes"):
        train("sft", config, make_player=AskAgain)
