"""Settings of trainers that learn from what the model itself writes (GRPO, PPO). Imports nothing
heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chuk_lib.config.settings import setting
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.tables import IdleRule


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(TrainerConfig):
    """Prompts, rewards and sampling. A step takes `prompts_per_step` prompts and has
    `num_generations` completions written for each."""

    usual_rates: ClassVar[tuple[float, float]] = (1e-6, 1e-5)

    batch_size: int = setting(
        8,
        "Completions in one micro-batch.",
        flag=True,
        minimum=1,
        aliases=("per_device_train_batch_size",),
    )
    learning_rate: float | None = setting(
        None,
        "Peak learning rate. Unset: 1e-6 (TRL's), 1e-5 with LoRA, and more for models below a"
        " billion weights.",
        flag=True,
        above=0,
        aliases=("lr",),
    )
    log_interval: int = setting(
        1,
        "Steps between log records; a step takes long here, so each one (TRL: 10).",
        minimum=1,
        aliases=("logging_steps",),
        panel="Output",
    )
    checkpoint_interval: int = setting(
        50,
        "Steps between checkpoints; the last step is always saved (TRL: 500).",
        panel="Output",
        minimum=1,
        aliases=("save_steps", "save_every"),
    )
    early_stopping_threshold: float = setting(
        0.0, "Improvement of eval_reward that counts.", panel="Output", minimum=0
    )
    rewards: tuple[str, ...] = setting(
        (),
        "What completions are worth: NAME[:args][=weight] or file.py:function[=weight], as a list.",
        panel="Rewards",
        aliases=("reward", "reward_funcs"),
        kind="rewards",
    )
    reward_weights: tuple[float, ...] = setting(
        (), "Weight of each reward, in their order; or `=weight` behind each.", panel="Rewards"
    )
    reward_errors: str = setting(
        "raise",
        "A reward that fails: raise stops the run, none leaves the completion unscored.",
        panel="Rewards",
        choices=("raise", "none"),
    )
    shuffle: bool = setting(
        True,
        "New order of prompts each epoch, from the seed. Off: file order.",
        panel="Data",
        aliases=("shuffle_dataset",),
    )
    max_prompt_length: int | None = setting(
        None,
        "Leave out prompts of more tokens, and say how many. none: keep all.",
        panel="Data",
        minimum=1,
    )
    max_completion_length: int = setting(
        256,
        "Most tokens of a completion; half of TRL's 512, for small machines.",
        panel="Sampling",
        flag=True,
        minimum=1,
        aliases=("max_new_tokens", "response_length"),
    )
    num_generations: int = setting(
        8,
        "Completions of each prompt.",
        panel="Sampling",
        flag=True,
        minimum=1,
        aliases=("group_size",),
    )
    temperature: float = setting(
        1.0, "Sampling temperature; losses use it too.", panel="Sampling", flag=True, above=0
    )
    top_p: float = setting(
        1.0,
        "Sample from the likeliest tokens with this mass.",
        panel="Sampling",
        maximum=1,
        above=0,
    )
    top_k: int = setting(0, "Sample from this many tokens; 0: all.", panel="Sampling", minimum=0)
    min_p: float = setting(
        0.0,
        "Leave out tokens less than this likely, relative to the likeliest.",
        panel="Sampling",
        minimum=0,
        maximum=1,
    )
    repetition_penalty: float = setting(1.0, "Above 1: repeat less.", panel="Sampling", above=0)
    stop: tuple[str, ...] = setting(
        (), "Texts that end a completion, with commas between.", panel="Sampling"
    )
    schema: str | None = setting(
        None,
        "File with a JSON schema: no token is drawn that breaks it. Log-probs stay the policy's.",
        panel="Sampling",
        kind="path",
    )
    rollout_tokens: int | None = setting(
        None,
        "Most tokens that are decoded side by side (prompts and completions). Unset: all of a"
        " step.",
        panel="Sampling",
        minimum=1,
    )
    eval_num_generations: int | None = setting(
        None,
        "Samples of each validation prompt at the training temperature. Unset: one greedy answer.",
        panel="Output",
        minimum=1,
        aliases=("num_generations_eval",),
    )
    environment: str | None = setting(
        None,
        "A class in a file, FILE.py:CLASS, of which each play has an object: `reset(**row)`, and"
        " its public methods as tools.",
        panel="Tools",
        flag="--env",
        kind="rewards",
        aliases=("environment_factory",),
    )
    tools: tuple[str, ...] = setting(
        (),
        "Functions that the model may call, FILE.py:FUNCTION, as a list.",
        panel="Tools",
        kind="rewards",
    )
    mcp: tuple[str, ...] = setting(
        (),
        "MCP servers whose tools the model may call, as a list: a file with mcpServers, a command"
        " line, or a URL.",
        panel="Tools",
        kind="path",
    )
    mcp_tools: tuple[str, ...] = setting(
        (),
        "Tools of MCP servers to take, names or patterns, as a list. Empty: all.",
        panel="Tools",
    )
    mcp_connect_seconds: float = setting(
        30.0, "How long an MCP server has to answer first.", panel="Tools", flag=True, above=0
    )
    mcp_record: str | None = setting(
        None,
        "Answer calls of MCP tools from this file what it holds; ask, and add, the rest.",
        panel="Tools",
        flag=True,
        kind="path",
    )
    max_turns: int = setting(
        8, "Most turns that the model writes in a play.", panel="Tools", flag=True, minimum=1
    )
    max_tool_seconds: float = setting(
        10.0, "Longest that a call may take.", panel="Tools", flag=True, above=0
    )
    max_tool_tokens: int | None = setting(
        None,
        "Most tokens of a tool's answer that the model is shown. Unset: what fits.",
        panel="Tools",
        flag=True,
        minimum=1,
    )
    ref_model: str | None = setting(
        None,
        "Reference: a model folder, run or hub id. Unset: the model as it is at the start.",
        panel="Model",
        kind="model",
    )

    disable_dropout: bool = setting(
        False, "Train without dropout, also that of adapters.", panel="Model"
    )

    idle_rules: ClassVar[tuple[IdleRule, ...]] = (
        (
            ("max_turns", "max_tool_seconds", "max_tool_tokens"),
            lambda c: not c.has_tools,
            "without an environment or tools",
        ),
        (
            ("mcp_tools", "mcp_connect_seconds", "mcp_record"),
            lambda c: not c.mcp,
            "without MCP servers",
        ),
    )

    @property
    def has_tools(self) -> bool:
        """Whether episodes are plays with tools."""
        return bool(self.environment or self.tools or self.mcp)

    @property
    def micro_batch(self) -> int:
        """Completions in one micro-batch."""
        return self.batch_size

    @property
    def rows_per_step(self) -> int:
        """Completions of one step."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def prompts_per_step(self) -> int:
        """Prompts of one step. Raises ConfigError when completions do not come out even."""
        prompts, rest = divmod(self.rows_per_step, self.num_generations)
        if rest or not prompts:
            raise ConfigError(
                f"a step has {self.rows_per_step} completions, which num_generations"
                f" ({self.num_generations}) does not divide",
                "choose batch_size × gradient_accumulation_steps (or steps_per_generation) as a"
                " multiple of num_generations",
            )
        return prompts

    @property
    def chosen_lag(self) -> int:
        """Steps between the weights that play and those that learn."""
        return 0

    @property
    def has_workers(self) -> bool:
        """Whether other processes play."""
        return False

    @property
    def chosen_parts(self) -> int:
        """Parts in which the prompts of a step are played."""
        return 1

    @property
    def scheduled_updates(self) -> int:
        """How often the learning rate's schedule moves in one step."""
        return 1

    def sampling(self, seed: int) -> SamplingConfig:
        """How completions are sampled in training."""
        return SamplingConfig(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_completion_length,
            stop=self.stop,
            seed=seed,
        )

    def eval_sampling(self) -> SamplingConfig:
        """How validation prompts are answered: greedily, or sampled with keys that are the same
        each time."""
        if self.eval_num_generations is not None:
            return self.sampling(self.seed)
        return SamplingConfig(
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_completion_length,
            stop=self.stop,
            seed=self.seed,
        )
