"""Settings of learning from preferences: DPO and its relatives, KTO, ORPO, CPO, reward models.
Imports nothing heavy.

Names and defaults are TRL 1.16's where it has them.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar

from chuk_lib.config.settings import setting
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.losses.preference_kinds import DIVERGENCES, DPO_LOSSES, readers
from chuk_lib.training.tables import IdleRule

_SMOOTHED, _DISCOPOP = readers("label_smoothing"), readers("discopop_tau")
CPO_LOSSES = ("sigmoid", "hinge", "ipo", "simpo", "alphapo")
KTO_LOSSES = ("kto", "apo_zero_unpaired")


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(TrainerConfig):
    """Settings that all trainers on preferences share. `epochs` is another word for
    `num_epochs`."""

    usual_rates: ClassVar[tuple[float, float]] = (1e-6, 1e-5)

    learning_rate: float | None = setting(
        None,
        "Peak learning rate. Unset: 1e-6 for full fine-tuning, 1e-5 with LoRA.",
        flag=True,
        above=0,
        aliases=("lr",),
    )
    max_length: int | None = setting(
        1024,
        "Longest prompt with completion in tokens; longer ones are cut at the end. none: no limit.",
        panel="Data",
        flag=True,
        minimum=2,
        aliases=("max_seq_length",),
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
    disable_dropout: bool = setting(
        True, "Train without dropout, also that of adapters.", panel="Model"
    )
    epochs: InitVar[int | None] = None

    def __post_init__(self, epochs: int | None) -> None:
        if epochs is not None:
            object.__setattr__(self, "num_epochs", epochs)


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(PreferenceConfig):
    """Settings of the losses that compare the policy with a reference."""

    beta: float = setting(
        0.1,
        "How closely the policy is held to the reference; higher is closer.",
        flag=True,
        above=0,
    )
    ref_model: str | None = setting(
        None,
        "Reference model. Unset: the model as it is before the first step (adapters off).",
        panel="Model",
        flag=True,
        aliases=("ref_model_name_or_path",),
        kind="model",
    )
    precompute_ref_log_probs: bool = setting(
        False,
        "Run the reference once over all data and keep its log-probs: no reference in memory,"
        " faster steps.",
        panel="Model",
        flag=True,
        aliases=("precompute_reference",),
    )
    precompute_ref_batch_size: int | None = setting(
        None,
        "Rows in one batch of that; unset: eval_batch_size or batch_size.",
        panel="Model",
        minimum=1,
    )
    ref_log_probs_cache: str = setting(
        "~/.cache/chuk/reference",
        "Folder that keeps them, a file for each pair of data and reference.",
        panel="Model",
        kind="path",
    )
    sync_ref_model: bool = setting(
        False, "Move the reference towards the policy on the way (TR-DPO).", panel="Model"
    )
    ref_model_mixup_alpha: float = setting(
        0.6,
        "Share of the policy in the new reference at each sync.",
        panel="Model",
        above=0,
        maximum=1,
    )
    ref_model_sync_steps: int = setting(
        512, "Steps between syncs of the reference.", panel="Model", minimum=1
    )

    idle_rules: ClassVar[tuple[IdleRule, ...]] = (
        (
            ("ref_model_mixup_alpha", "ref_model_sync_steps"),
            lambda c: not c.sync_ref_model,
            "without sync_ref_model",
        ),
        (
            ("precompute_ref_batch_size", "ref_log_probs_cache"),
            lambda c: not c.precompute_ref_log_probs,
            "without precompute_ref_log_probs",
        ),
    )

    def check_reference(self) -> None:
        """Raise ConfigError for settings of the reference that contradict each other."""
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ConfigError(
                "sync_ref_model moves the reference, and precompute_ref_log_probs fixes it",
                "leave one of them out",
            )


@dataclass(frozen=True, kw_only=True)
class DPOConfig(ReferenceConfig):
    """Settings of direct preference optimisation."""

    loss_type: tuple[str, ...] = setting(
        ("sigmoid",),
        f"One loss or several, with commas between: {', '.join(DPO_LOSSES)}.",
        flag=True,
    )
    loss_weights: tuple[float, ...] | None = setting(
        None, "Weight of each loss type. Unset: 1 each.", flag=True
    )
    label_smoothing: float = setting(
        0.0,
        f"Share of pairs that may be labelled wrongly, for {', '.join(_SMOOTHED)}.",
        minimum=0,
        maximum=0.5,
    )
    f_divergence_type: str = setting(
        "reverse_kl",
        "Divergence from the reference that the loss stands for.",
        choices=tuple(DIVERGENCES),
    )
    f_alpha_divergence_coef: float = setting(0.5, "Order of the alpha divergence.")
    ld_alpha: float | None = setting(
        None,
        "LD-DPO: weight of the tokens beyond the length that both completions have.",
        minimum=0,
        maximum=1,
    )
    use_weighting: bool = setting(
        False, "WPO: weigh each pair by how likely the policy is to write it.", aliases=("wpo",)
    )
    discopop_tau: float = setting(0.05, "Temperature of the discopop loss.", above=0)

    idle_rules: ClassVar[tuple[IdleRule, ...]] = (
        *ReferenceConfig.idle_rules,
        (
            ("label_smoothing",),
            lambda c: not set(c.loss_type) & set(_SMOOTHED),
            f"with these losses; it is for {', '.join(_SMOOTHED)}",
        ),
        (
            ("f_alpha_divergence_coef",),
            lambda c: c.f_divergence_type != "alpha_divergence",
            "without f_divergence_type=alpha_divergence",
        ),
        (
            ("discopop_tau",),
            lambda c: not set(c.loss_type) & set(_DISCOPOP),
            f"without loss_type={' or '.join(_DISCOPOP)}",
        ),
    )

    def check(self) -> None:
        """Raise ConfigError for settings that are no DPO together."""
        self.check_reference()
        _check_names(self.loss_type, tuple(DPO_LOSSES))
        kinds = {name: DPO_LOSSES[name] for name in self.loss_type}
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            counts = f"{len(self.loss_weights)} weights for {len(self.loss_type)} losses"
            raise ConfigError(f"loss_weights: {counts}", "give one weight for each loss type")
        for name, kind in kinds.items():
            if kind.smoothing is None:
                continue
            least, most, hint = kind.smoothing
            if not least < self.label_smoothing < most:
                where = f"above {least}" if self.label_smoothing <= least else f"below {most}"
                raise ConfigError(f"loss_type={name} needs label smoothing {where}", hint)
        sorting = [name for name, kind in kinds.items() if kind.sorts]
        if self.use_weighting and sorting:
            raise ConfigError(
                f"use_weighting weighs pairs, and loss_type={sorting[0]} sorts its ratios out of"
                " their pairs",
                "leave use_weighting out, or take another loss",
            )
        odd = [name for name, kind in kinds.items() if not kind.scored]
        if self.f_divergence_type != "reverse_kl" and odd:
            scored = [name for name, kind in DPO_LOSSES.items() if kind.scored]
            raise ConfigError(
                f"f_divergence_type={self.f_divergence_type} does not fit loss_type={odd[0]}",
                f"losses that take another divergence: {', '.join(scored)}",
            )


@dataclass(frozen=True, kw_only=True)
class KTOConfig(ReferenceConfig):
    """Settings of KTO: completions that are good or bad on their own, without pairs."""

    loss_type: str = setting(
        "kto", "kto, or apo_zero_unpaired (no KL estimate).", choices=KTO_LOSSES, flag=True
    )
    desirable_weight: float = setting(1.0, "Weight of the good completions.", flag=True, minimum=0)
    undesirable_weight: float = setting(1.0, "Weight of the bad completions.", flag=True, minimum=0)

    def check(self) -> None:
        """Raise ConfigError for settings that are no KTO together."""
        self.check_reference()
        if self.loss_type == "kto" and self.batch_size * self.gradient_accumulation_steps < 2:
            raise ConfigError(
                "KTO estimates its KL from other rows of the update, and there is one row in it",
                "raise batch_size or gradient_accumulation_steps, or use"
                " loss_type=apo_zero_unpaired",
            )
        if self.loss_type == "kto" and self.precompute_ref_log_probs:
            raise ConfigError(
                "precompute_ref_log_probs does not fit loss_type=kto: its KL asks for other rows at"
                " every step",
                "leave precompute_ref_log_probs out, or use loss_type=apo_zero_unpaired",
            )


@dataclass(frozen=True, kw_only=True)
class ORPOConfig(PreferenceConfig):
    """Settings of ORPO: supervised learning of the chosen, and an odds ratio against the
    rejected."""

    beta: float = setting(
        0.1, "Weight of the odds ratio.", flag=True, above=0, aliases=("orpo_alpha",)
    )


@dataclass(frozen=True, kw_only=True)
class CPOConfig(PreferenceConfig):
    """Settings of CPO and, by `loss_type`, of SimPO and AlphaPO: preferences without a
    reference."""

    beta: float = setting(
        0.1, "Steepness of the loss; SimPO's papers use 2 to 10.", flag=True, above=0
    )
    loss_type: str = setting(
        "sigmoid", "sigmoid, hinge, ipo, simpo or alphapo.", choices=CPO_LOSSES, flag=True
    )
    label_smoothing: float = setting(
        0.0, "Share of pairs that may be labelled wrongly.", minimum=0, maximum=0.5
    )
    cpo_alpha: float = setting(
        1.0,
        "Weight of learning the chosen as in supervised fine-tuning; pure SimPO: 0.",
        flag=True,
        minimum=0,
    )
    simpo_gamma: float = setting(0.5, "Margin that SimPO asks for.", flag=True, minimum=0)
    alpha: float = setting(0.0, "AlphaPO: shape of the reward; 0 is log-probability.")

    idle_rules: ClassVar[tuple[IdleRule, ...]] = (
        (
            ("label_smoothing",),
            lambda c: c.loss_type in ("hinge", "ipo"),
            "with loss_type=hinge or ipo",
        ),
        (
            ("simpo_gamma",),
            lambda c: c.loss_type not in ("simpo", "alphapo"),
            "without loss_type=simpo or alphapo",
        ),
        (
            ("cpo_alpha",),
            lambda c: c.loss_type == "alphapo",
            "with loss_type=alphapo; use simpo with alpha",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class RewardConfig(PreferenceConfig):
    """Settings of a reward model: a score head on a language model, trained on pairs (Bradley and
    Terry 1952)."""

    usual_rates: ClassVar[tuple[float, float]] = (1e-4, 1e-3)

    learning_rate: float | None = setting(
        None,
        "Peak learning rate. Unset: 1e-4 for full fine-tuning, 1e-3 with LoRA.",
        flag=True,
        above=0,
        aliases=("lr",),
    )
    center_rewards_coefficient: float | None = setting(
        None, "Weight of a penalty that keeps scores near 0; 0.01 is usual.", flag=True, minimum=0
    )


def _check_names(given: tuple[str, ...], known: tuple[str, ...]) -> None:
    import difflib

    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"losses: {', '.join(known)}"
            raise ConfigError(f"there is no loss_type `{name}`", hint)
    if not given:
        raise ConfigError("loss_type is empty", f"losses: {', '.join(known)}")
