"""Settings of the trainers: one dataclass each, one field per setting. Imports nothing heavy.

Names follow the project's plan (`checkpoint_interval`, `max_grad_norm`, …) and TRL where the plan
has none; TRL's and mlx-lm's other names for the same thing are accepted as aliases in files and
with `--set`."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar, TypeVar

from chuk_lib.config.settings import setting, settings_of, validate
from chuk_lib.errors import ConfigError
from chuk_lib.models.config import IMPLEMENTATIONS, LoRAConfig
from chuk_lib.training.idle import SHARED
from chuk_lib.training.optimizer_kinds import APPLYING, OPTIMIZERS
from chuk_lib.training.schedulers import SCHEDULES
from chuk_lib.training.tables import IdleRule


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of any run, whatever it trains: where to, how far, how fast, what is watched and
    kept."""

    idle_rules: ClassVar[tuple[IdleRule, ...]] = ()
    """A class's own cases of settings that do nothing next to others."""

    output: str | None = setting(
        None,
        "Run directory; the default is a new one under runs/.",
        panel="Output",
        flag=True,
        short="-o",
        aliases=("output_dir", "checkpoint_dir"),
        kind="path",
    )
    max_steps: int | None = setting(
        None,
        "Stop after this many steps, whatever num_epochs says.",
        flag=True,
        minimum=1,
        aliases=("iters",),
        synonyms={"-1": None},
    )
    learning_rate: float | None = setting(
        None,
        "Peak learning rate. Unset: 2e-5 for full fine-tuning, 2e-4 with LoRA.",
        flag=True,
        above=0,
        aliases=("lr",),
    )
    lr_scheduler_type: str = setting(
        "linear",
        "Learning-rate schedule after warmup.",
        choices=tuple(SCHEDULES),
        aliases=("lr_schedule",),
        flag=True,
    )
    warmup_steps: int | float = setting(
        0,
        "Updates from zero to the peak learning rate; below 1 a share of all updates, as"
        " warmup_ratio.",
        minimum=0,
        whole_from=1,
        flag=True,
    )
    warmup_ratio: float = setting(
        0.0,
        "Warmup as a share of all updates, rounded up; used when warmup_steps is 0.",
        minimum=0,
        maximum=1,
    )
    min_lr_rate: float = setting(
        0.0, "Floor of cosine_with_min_lr, as a share of the peak.", minimum=0, maximum=1
    )
    num_cycles: float = setting(1.0, "Cycles of cosine_with_restarts.", above=0)
    lr_power: float = setting(1.0, "Exponent of the polynomial schedule.", above=0)
    num_decay_steps: int | None = setting(
        None,
        "Last steps over which warmup_stable_decay falls; unset: a tenth of all steps.",
        minimum=1,
    )
    optimizer: str = setting(
        "adamw",
        "Optimizer.",
        choices=tuple(OPTIMIZERS),
        aliases=("optim",),
        flag=True,
        synonyms=dict.fromkeys(
            ("adamw_torch", "adamw_torch_fused", "adamw_hf", "paged_adamw", "paged_adamw_32bit"),
            "adamw",
        ),
    )
    weight_decay: float = setting(
        0.0, "Decoupled weight decay; never on norms and biases.", minimum=0, panel="Training"
    )
    adam_beta1: float = setting(
        0.9, "First-moment decay of Adam, AdamW and Lion.", minimum=0, maximum=0.999999
    )
    adam_beta2: float = setting(
        0.999, "Second-moment decay of Adam, AdamW and Lion.", minimum=0, maximum=0.9999999
    )
    adam_epsilon: float = setting(1e-8, "Term added to Adam's denominator.", above=0)
    momentum: float = setting(
        0.0, "Momentum of SGD; Muon uses 0.95 when this is 0.", minimum=0, maximum=0.999999
    )
    max_grad_norm: float = setting(
        1.0, "Clip the gradient to this global norm; 0 switches clipping off.", minimum=0
    )
    seed: int = setting(
        0, "Seed of data order, dropout and new weights.", flag=True, minimum=0, maximum=2**32 - 1
    )
    log_interval: int = setting(
        10,
        "Steps between log records.",
        minimum=1,
        aliases=("logging_steps", "steps_per_report"),
        panel="Output",
    )
    eval_steps: int | None = setting(
        None,
        "Steps between evaluations; unset: at each checkpoint.",
        panel="Output",
        minimum=1,
        aliases=("steps_per_eval",),
    )
    checkpoint_interval: int = setting(
        500,
        "Steps between checkpoints; the last step is always saved.",
        panel="Output",
        minimum=1,
        aliases=("save_steps", "save_every"),
    )
    checkpoint_minutes: float | None = setting(
        None,
        "Save also when the last checkpoint is this old; the next one takes its place. 0: never."
        " Unset: 10 on a GPU, 0 on a CPU.",
        panel="Output",
        minimum=0,
    )
    keep_checkpoints: int | None = setting(
        None,
        "Keep this many newest checkpoints, and the best. Unset: all.",
        panel="Output",
        flag=True,
        minimum=1,
        aliases=("save_total_limit",),
    )
    early_stopping_patience: int | None = setting(
        None, "Stop after this many evaluations without improvement.", panel="Output", minimum=1
    )
    early_stopping_threshold: float = setting(
        0.0, "Improvement of eval_loss that counts.", panel="Output", minimum=0
    )
    report_to: tuple[str, ...] = setting(
        (),
        "Also report to these, with commas between: tensorboard, wandb, trackio.",
        panel="Output",
        flag=True,
    )
    run_name: str | None = setting(
        None, "What wandb and trackio call the run; unset: its folder's name.", panel="Output"
    )
    project: str | None = setting(
        None,
        "Project of wandb and trackio; unset: WANDB_PROJECT for wandb, else chuk.",
        panel="Output",
        aliases=("wandb_project",),
    )
    tags: tuple[str, ...] = setting(
        (), "Tags of the run in wandb.", panel="Output", aliases=("wandb_tags",)
    )

    def check(self) -> None:
        """Raise ConfigError for settings that make no sense together."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Settings of a language model and its data: which, in what batches, and what of it is
    trained."""

    model: str | None = setting(
        None,
        "Model: a folder, a run, a checkpoint or a hub id.",
        panel="Model",
        flag=True,
        short="-m",
        aliases=("model_name", "model_name_or_path"),
        kind="model",
    )
    data: str | None = setting(
        None,
        "Training data: a file, a folder with train/valid/test files, a hub dataset id, or - for"
        " stdin; repeat it for several, `FILE=0.3` takes three rows of ten.",
        panel="Data",
        flag=True,
        short="-d",
        aliases=("dataset", "dataset_name", "train_file"),
        kind="data",
    )
    eval_data: str | None = setting(
        None,
        "Validation data; the default is the valid file of a data folder.",
        panel="Data",
        flag=True,
        aliases=("eval_dataset", "valid_data", "validation_file"),
        kind="data",
    )
    chat_template: str | None = setting(
        None,
        "Chat template for a base model: chatml, llama3, gemma, mistral, phi, zephyr, alpaca or a"
        " Jinja file. Unset: the model's own.",
        panel="Model",
        aliases=("chat_template_path",),
    )
    add_tokens: bool = setting(
        False,
        "Add the tokens that chat_template writes and the tokenizer lacks, with embeddings.",
        panel="Model",
    )
    chat_template_kwargs: str | None = setting(
        None,
        'What every conversation tells the chat template: {"enable_thinking": false}.',
        panel="Model",
        kind="json",
    )
    val_size: float = setting(
        0.0,
        "Rows of the data to set aside for validation; below 1 a share of them.",
        panel="Data",
        flag=True,
        minimum=0,
        whole_from=1,
        aliases=("val_set_size",),
    )
    column_map: tuple[str, ...] = setting(
        (),
        "Columns under other names: prompt=question takes the column `question` for `prompt`.",
        panel="Data",
        flag="--map",
        aliases=("map",),
    )
    num_epochs: int | float = setting(
        3,
        "Passes over the data; 0.5 is half of it.",
        flag=True,
        above=0,
        aliases=("epochs", "num_train_epochs"),
    )
    batch_size: int = setting(
        8,
        "Rows in one micro-batch.",
        flag=True,
        minimum=1,
        aliases=("per_device_train_batch_size",),
    )
    gradient_accumulation_steps: int = setting(
        1,
        "Micro-batches in one update; the loss is normalised over all of them.",
        flag=True,
        minimum=1,
        aliases=("grad_accumulation_steps",),
    )
    gradient_checkpointing: bool = setting(
        False,
        "Recompute activations in the backward pass: slower, much less memory.",
        aliases=("grad_checkpoint",),
    )
    checkpointing_blocks: int | None = setting(
        None,
        "With gradient_checkpointing: only the first N blocks recompute, for less saved and more"
        " speed. Unset: all.",
        minimum=1,
    )
    use_lora: bool = setting(
        False,
        "Train low-rank adapters instead of all weights.",
        panel="Model",
        flag="--lora/--full",
        aliases=("use_peft", "lora"),
    )
    lora_rank: int = setting(
        8, "Rank of the adapters.", panel="Model", flag=True, minimum=1, aliases=("lora_r",)
    )
    lora_alpha: float = setting(16.0, "Adapter scale = alpha / rank.", panel="Model", above=0)
    lora_dropout: float = setting(
        0.0, "Dropout before the adapters.", panel="Model", minimum=0, maximum=0.99
    )
    lora_target_modules: tuple[str, ...] | None = setting(
        None,
        "Modules to adapt: names, patterns such as *_proj, or all-linear. Unset: q_proj,v_proj.",
        panel="Model",
        flag="--lora-targets",
        aliases=("lora_targets", "lora_target"),
    )
    use_rslora: bool = setting(False, "Scale adapters by alpha / sqrt(rank).", panel="Model")
    use_dora: bool = setting(False, "Weight-decomposed adapters (DoRA).", panel="Model")
    num_layers: int | None = setting(
        None,
        "Train only the last N blocks (adapters or full weights). Unset: all.",
        panel="Model",
        minimum=1,
        aliases=("lora_layers",),
    )
    dtype: str = setting(
        "auto",
        "Weights: float32 on CPU; on GPUs bfloat16 when frozen, float32 when trained.",
        panel="Model",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    revision: str | None = setting(None, "Branch, tag or commit of a hub model.", panel="Model")
    load_in_4bit: bool = setting(
        False,
        "Pack the base to 4 bits when it is loaded, to train adapters on it (QLoRA).",
        panel="Model",
        flag=True,
        aliases=("qlora",),
    )
    implementation: str = setting(
        "auto",
        "Whose code runs the model; auto: chuk's where MLX-LM's would not do what the config says.",
        panel="Model",
        choices=IMPLEMENTATIONS,
    )
    eval_batch_size: int | None = setting(
        None,
        "Rows in one evaluation batch; unset: batch_size.",
        panel="Output",
        minimum=1,
        aliases=("per_device_eval_batch_size",),
    )

    @property
    def lora(self) -> LoRAConfig | None:
        """The adapters to add, or None for full weights."""
        if not self.use_lora and not self.use_dora and not self.use_rslora:
            return None
        return LoRAConfig(
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            targets=self.lora_target_modules,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            num_layers=self.num_layers,
        )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(RunConfig, LanguageModelConfig):
    """Settings that every trainer of language models shares."""

    usual_rates: ClassVar[tuple[float, float]] = (2e-5, 2e-4)
    """Learning rates for full weights and for adapters when nobody gave one; here TRL's, and its
    advice for LoRA."""
    rate_power: ClassVar[float] = 0.0
    """How fast these grow as models become smaller than a billion weights (`by_size.scaled_rate`).
    """


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainerConfig):
    """Settings of supervised fine-tuning. `epochs` is another word for `num_epochs`."""

    max_length: int | None = setting(
        1024,
        "Longest row in tokens; longer ones are cut at the end. none: no limit.",
        panel="Data",
        flag=True,
        minimum=2,
        aliases=("max_seq_length",),
    )
    completion_only_loss: bool | None = setting(
        None,
        "Learn completions only, of a conversation the last answer. Unset: yes when rows have a"
        " prompt and a completion.",
        panel="Data",
    )
    assistant_only_loss: bool = setting(
        False,
        "In conversations learn every assistant turn and nothing else.",
        panel="Data",
        flag=True,
    )
    packing: bool = setting(
        False,
        "Put several rows into one of max_length; rows do not see each other.",
        panel="Data",
        flag=True,
    )
    packing_strategy: str = setting(
        "bfd",
        "bfd keeps rows whole, bfd_split cuts long ones, wrapped ignores boundaries.",
        panel="Data",
        choices=("bfd", "bfd_split", "wrapped"),
    )
    group_by_length: bool | None = setting(
        None,
        "Batch rows of similar length. Unset: where more than a tenth would be padding.",
        panel="Data",
    )
    shuffle: bool = setting(
        True, "New order each epoch, from the seed. Off: file order.", panel="Data"
    )
    pad_to_multiple_of: int | None = setting(
        None, "Round padded lengths up to a multiple.", panel="Data", minimum=1
    )
    format: str | None = setting(
        None, "Record format; unset: recognised and announced.", panel="Data"
    )
    text_field: str = setting(
        "text", "Column of plain text.", panel="Data", aliases=("dataset_text_field",)
    )
    loss_type: str = setting(
        "nll", "nll, or dft (token losses weighted by their probability).", choices=("nll", "dft")
    )
    parameter_server: str | None = setting(
        None,
        "Train for a parameter server, whose weights, batches and optimizer count: the folder of"
        " `chuk params serve` on this machine, or HOST:PORT.",
        flag=True,
    )
    label_smoothing_factor: float = setting(
        0.0,
        "Share of each target that is spread evenly over the vocabulary; evaluations leave it out.",
        minimum=0,
        maximum=0.999,
    )
    neftune_noise_alpha: float | None = setting(
        None,
        "NEFTune: uniform noise on embeddings in training, up to alpha / sqrt(tokens x width).",
        minimum=0,
    )
    router_aux_loss_coef: float = setting(
        0.0,
        "Weight of the load-balancing loss of a mixture of experts (mixtral, olmoe, qwen2_moe,"
        " qwen3_moe).",
        minimum=0,
    )
    epochs: InitVar[int | None] = None

    idle_rules: ClassVar[tuple[IdleRule, ...]] = (
        *TrainerConfig.idle_rules,
        (
            APPLYING,
            lambda c: c.parameter_server is not None,
            "with parameter_server; give it to `chuk params serve`",
        ),
        (("label_smoothing_factor",), lambda c: c.loss_type != "nll", "with this loss_type"),
        (
            ("router_aux_loss_coef",),
            lambda c: c.gradient_checkpointing,
            "with gradient_checkpointing: blocks that are run again do not show their routers",
        ),
    )

    def __post_init__(self, epochs: int | None) -> None:
        if epochs is not None:
            object.__setattr__(self, "num_epochs", epochs)


Config = TypeVar("Config", bound=TrainerConfig)
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def checked(config: AnyConfig) -> AnyConfig:
    """The settings, sound in themselves and together. Raises ConfigError."""
    config = validate(config)
    refuse_idle_settings(config)
    config.check()
    return config


def refuse_idle_settings(config: RunConfig) -> None:
    """Raise ConfigError for a setting that was changed and would do nothing next to the others."""
    known = settings_of(type(config))
    for names, idle, why in (*SHARED, *type(config).idle_rules):
        for name in names:
            if name in known and getattr(config, name) != known[name].default and idle(config):
                raise ConfigError(
                    f"`{name}` does nothing {why}",
                    f"leave `{name}` out, or change the other setting",
                )
