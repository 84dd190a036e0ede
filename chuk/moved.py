"""Where everything of the predecessor is now: one row for each of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

ROOTS = ("core", "rl", "training", "sft", "tools", "parameter_server", "chuk")


class Moved(NamedTuple):
    """The module that does a module's work now, and its names that are called otherwise."""

    home: str
    """Empty: nothing does."""
    names: Mapping[str, str] = {}
    """Old name: the new one in `home`, or `module:name`."""
    gone: Mapping[str, str] = {}
    """Old name: what to do instead."""
    note: str = ""

    def target(self, name: str) -> str:
        """`module:name` of an old name."""
        new = self.names.get(name, name)
        return new if ":" in new else f"{self.home}:{new}"

    def words(self, old: str) -> str:
        """What became of the module."""
        note = f": {self.note}" if self.note else ""
        if not self.home:
            return f"`{old}` has no successor{note}"
        return f"`{old}` is `{self.home}` now{note}"


_ONE_DECODER = "chuk_lib.models.architectures.decoder"
_LOAD = "`chuk_lib.models.load_model(FOLDER)` gives a model and its tokenizer"
_MLX_ONLY = "chuk computes with MLX alone: `mlx.core` and `mlx.nn`"
_UPDATES = "`chuk_lib.training.engine.fit` runs the steps of an `Algorithm`"
_BUILD = "`chuk batch build`, or `chuk_lib.data.batches.builder.build`"
_NO_SERVER = "there is no parameter server in this version of chuk"

_CONFIG = Moved(
    "chuk_lib.models.config",
    gone={"ModelConfig": "`chuk_lib.models.describe_model(FOLDER)` tells what a config.json says"},
)
_LOADER = Moved("chuk_lib.models", gone={"load_model_tokenizer_and_checkpoint": _LOAD})
_HUB = Moved("chuk_lib.models.hub", {"load_from_hub": "download_model"})
_TRAINERS = Moved(
    "chuk_lib.training",
    {
        "Trainer": "SFTTrainer",
        "DPOTrainerConfig": "DPOConfig",
        "GRPOTrainerConfig": "GRPOConfig",
        "PPOTrainerConfig": "PPOConfig",
    },
)
_EPOCHS = Moved("chuk_lib.training.engine", gone={"EpochProcessor": _UPDATES})
_SCHEDULES = Moved(
    "chuk_lib.training.schedulers",
    {"schedule_learning_rate": "Schedule"},
    note="a schedule is a function of the step",
)
_OPTIMIZERS = Moved("chuk_lib.training.optimizers", {"load_optimizer": "build_optimizer"})
_PIPELINE = Moved("chuk_lib.training.pipeline", note="`chuk train pipeline --stages sft,dpo,eval`")
_SERVER = Moved("", note=_NO_SERVER)
_HYBRID = {
    "orchestrator": Moved("chuk_lib.env.orchestrator", {"StepResult": "OrchestratorStep"}),
    "hybrid_env": Moved("chuk_lib.env.hybrid_env"),
    "observation": Moved("chuk_lib.env.observation", {"MistralObservation": "HybridObservation"}),
    "reward": Moved(
        "chuk_lib.env.reward", {"RewardConfig": "HybridReward", "RewardComputer": "HybridReward"}
    ),
}
_CROSS_ENTROPY = Moved(
    "chuk_lib.training.losses.cross_entropy",
    gone={
        "chukloss": "`sft_loss` takes what `chuk_lib.training.utils.log_probs.target_stats` gives"
    },
)
_DPO_LOSS = Moved(
    "chuk_lib.training.losses.preference",
    {"dpo_loss": "preference_loss", "DPOConfig": "chuk_lib.training.preference.config:DPOConfig"},
)
_GRPO_LOSS = Moved(
    "chuk_lib.training.losses.policy_gradient",
    {"grpo_loss": "policy_loss", "GRPOConfig": "chuk_lib.training.online.grpo_config:GRPOConfig"},
)
_PPO_LOSS = Moved(
    "chuk_lib.training.losses.ppo", {"PPOConfig": "chuk_lib.training.online.ppo_config:PPOConfig"}
)
_ADVANTAGE = Moved(
    "chuk_lib.training.utils.advantages",
    {
        "compute_gae": "chuk_lib.training.utils.gae:gae",
        "normalize_advantages": "chuk_lib.training.utils.gae:whiten",
    },
    {"compute_returns": "`chuk_lib.training.utils.gae.gae` gives returns beside advantages"},
)
_KL = Moved(
    "chuk_lib.training.losses.policy_gradient",
    {"compute_kl_divergence": "k3", "compute_approx_kl": "k3"},
    note="k3 is the estimate of each token that losses use; it is never negative",
)
_LOG_PROBS = Moved(
    "chuk_lib.training.utils.log_probs",
    {
        "compute_log_probs_from_logits": "logit_stats",
        "extract_log_probs": "completion_stats",
        "compute_sequence_log_prob": "chuk_lib.training.losses.preference:sequence_logps",
    },
)
_BATCHES = Moved("chuk_lib.data.batches.builder", note=_BUILD)
_BUCKETS = Moved(
    "chuk_lib.data.batches.edges",
    note="`suggest` chooses padded lengths; `chuk batch suggest` shows it",
)
_FOLDER = Moved(
    "chuk_lib.data.batches.folder",
    {"BatchDatasetBase": "BatchFolder", "TrainBatchDataset": "BatchFolder"},
)
_EPISODES = Moved(
    "chuk_lib.training.online.episode",
    {"Transition": "Turn"},
    {
        "RolloutBuffer": "`chuk_lib.training.online.collect` gathers a step's episodes",
        "EpisodeBatch": "`episode_arrays` pads episodes into arrays",
    },
)
_PAIRS = Moved("chuk_lib.data.preference_dataset", {"PreferenceDataset": "PairDataset"})
_MATH = Moved(
    "chuk_lib.data.generators",
    gone={"generate_lazarus_dataset": "`chuk data generate math --output DIR` writes a folder"},
)
_TOKENIZERS = Moved("chuk_lib.data.tokenizers.loader", {"CustomTokenizer": "load_tokenizer"})
_VOCABULARY = Moved("chuk_lib.data.tokenizers.facts")
_GENERATOR = Moved(
    "chuk_lib.inference.generator", {"generate_response": "generate", "generate_sequence": "stream"}
)
_EXPERT = Moved("chuk_lib.experts")
_MEMORY = Moved("chuk_lib.runtime.memory_use")
_ADAPTER = Moved("", note=_MLX_ONLY)
_SETTINGS = Moved(
    "chuk_lib.config.settings",
    gone={"load_config": "`chuk train sft --config FILE`; `chuk config migrate FILE` rewrites it"},
)
_FAMILIES = ("llama", "mistral", "gemma", "granite", "starcoder2")
_DECODERS = dict.fromkeys(
    ("Model", *(f"{name.capitalize()}Model" for name in _FAMILIES)), f"{_ONE_DECODER}:DecoderModel"
)
_ARCHITECTURES = Moved(
    "chuk_lib.models.architectures",
    {
        **_DECODERS,
        "AttentionBase": f"{_ONE_DECODER}:Attention",
        "TransformerBaseModel": f"{_ONE_DECODER}:Body",
    },
    note="one model is made of a family's `read(config)`",
)
_MLPS = Moved("chuk_lib.models.architectures.mlps", {"create_mlp": "make_mlp"})
_CREATE = Moved(
    "chuk_lib.models.create",
    note="`chuk model create --preset tiny` makes a model to try things with",
)
_TOYS = Moved(
    "chuk_lib.models.architectures.toys",
    note="`chuk model create` makes them: presets lazyfox, lazyfox-mlp, -rnn, -lstm, math, mock",
)


def _family(name: str) -> Moved:
    return Moved(f"chuk_lib.models.architectures.{name}", _DECODERS)


def _script(command: str) -> Moved:
    return Moved("chuk_cli.commands", note=f"`{command}` does it")


_OLD: dict[str, Moved] = {
    "core.models.model_config": _CONFIG,
    "core.utils.model_loader": _LOADER,
    "core.models.model_loader": _LOADER,
    "rl.models.hf_model_adapter": _LOADER,
    "core.models.load_weights": Moved("chuk_lib.models.weights"),
    "core.models.mlx_adapter": _ADAPTER,
    "core.models.architectures": _ARCHITECTURES,
    "core.models.architectures.attention_base": _ARCHITECTURES,
    "core.models.architectures.transformer_base_model": _ARCHITECTURES,
    "core.models.architectures.model": _ARCHITECTURES,
    "core.models.architectures.mlp_factory": _MLPS,
    "core.models.architectures.normalization_layer_factory": _ARCHITECTURES,
    "core.models.architectures.pruning": Moved("", note="nothing prunes attention heads"),
    "core.models.architectures.lazyfox": _TOYS,
    "core.models.architectures.math": _TOYS,
    "core.models.architectures.mock": _TOYS,
    "core.models.architectures.chuk": _CREATE,
    "core.models.architectures.lazyfox.xxx_lazyfox_mlp": Moved("", note="it drew a picture"),
    "training.trainer": _TRAINERS,
    "training.batch_processor": Moved("chuk_lib.training.updater", {"BatchProcessor": "Updater"}),
    "training.epoch_processor": _EPOCHS,
    "training.training_scheduler": _SCHEDULES,
    "rl.trainers.sft_trainer": _TRAINERS,
    "rl.trainers.dpo_trainer": _TRAINERS,
    "rl.trainers.grpo_trainer": _TRAINERS,
    "rl.trainers.ppo_trainer": _TRAINERS,
    "core.models.chuk_loss_function": _CROSS_ENTROPY,
    "rl.losses.dpo_loss": _DPO_LOSS,
    "rl.losses.grpo_loss": _GRPO_LOSS,
    "rl.losses.ppo_loss": _PPO_LOSS,
    "rl.utils.advantage": _ADVANTAGE,
    "rl.utils.kl_divergence": _KL,
    "rl.utils.log_probs": _LOG_PROBS,
    "core.batch.batch_base": _BATCHES,
    "core.batch.bucketing": _BUCKETS,
    "core.batch.padding_utils": Moved("chuk_lib.data.batches.layouts"),
    "core.batch.tokenization_utils": Moved("chuk_lib.data.batches.documents"),
    "core.batch.pretrain_batch": _BATCHES,
    "core.batch.finetune_batch": _BATCHES,
    "core.batch.llama_finetune_batch": _BATCHES,
    "core.dataset.batch_dataset_base": _FOLDER,
    "core.dataset.train_batch_dataset": _FOLDER,
    "rl.data.preference_dataset": _PAIRS,
    "rl.data.rollout_buffer": _EPISODES,
    "rl.data.episode": _EPISODES,
    "rl.data.generators": _MATH,
    "rl.data.generators.math_generator": _MATH,
    "core.tokenizers.custom_tokenizer": _TOKENIZERS,
    "core.tokenizers.vocab_utils": _VOCABULARY,
    "core.utils.tokenizer_loader": _TOKENIZERS,
    "core.models.inference_utility": _GENERATOR,
    "rl.experts": _EXPERT,
    "rl.experts.rnn_expert_base": _EXPERT,
    "rl.experts.gru_expert": _EXPERT,
    "rl.experts.lstm_expert": _EXPERT,
    "rl.experts.registry": _EXPERT,
    **{f"rl.env.{name}": moved for name, moved in _HYBRID.items()},
    "parameter_server.server": _SERVER,
    "parameter_server.client": _SERVER,
    "parameter_server.llm_send_client": _SERVER,
    "parameter_server.llm_receiver_client": _SERVER,
    "core.utils.huggingface_utils": _HUB,
    "core.utils.memory_utils": _MEMORY,
    "core.utils.model_adapter": _ADAPTER,
    "core.utils.optimizer_adapter": _ADAPTER,
    "core.utils.optimizer_loader": _OPTIMIZERS,
    "core.utils.loss_function_loader": _CROSS_ENTROPY,
    "core.utils.training_config_loader": _SETTINGS,
    "sft": Moved("chuk_lib.training", note="`SFTTrainer`, or `chuk train sft`"),
    "sft.surreal": Moved("chuk_lib.training", note="it was empty"),
    "rl.lazarus": _PIPELINE,
    "tools.batch": _script("chuk batch"),
    "tools.models": _script("chuk model"),
    "tools.tokenizer": _script("chuk tokenizer"),
    "tools.train": _script("chuk train"),
}

_PLANNED = {
    "chuk.models.architectures.attention": _ARCHITECTURES,
    "chuk.models.architectures.base": _ARCHITECTURES,
    "chuk.models.architectures.mlp": _MLPS,
    "chuk.models.architectures.experimental": _TOYS,
    "chuk.models.architectures": _ARCHITECTURES,
    **{
        f"{root}.{name}{module}": _family(name)
        for name in _FAMILIES
        for root, module in (
            ("chuk.models.architectures", ""),
            ("core.models.architectures", ""),
            ("core.models.architectures", f".{name}_model"),
        )
    },
    "chuk.models.config": _CONFIG,
    "chuk.models.loader": _LOADER,
    "chuk.training": _TRAINERS,
    "chuk.training.base_trainer": _TRAINERS,
    "chuk.training.trainer": _TRAINERS,
    "chuk.training.sft_trainer": _TRAINERS,
    "chuk.training.schedulers": _SCHEDULES,
    "chuk.training.dpo_trainer": _TRAINERS,
    "chuk.training.grpo_trainer": _TRAINERS,
    "chuk.training.ppo_trainer": _TRAINERS,
    "chuk.training.losses.cross_entropy": _CROSS_ENTROPY,
    "chuk.training.losses.dpo_loss": _DPO_LOSS,
    "chuk.training.losses.grpo_loss": _GRPO_LOSS,
    "chuk.training.losses.ppo_loss": _PPO_LOSS,
    "chuk.training.utils.batch_processor": _OLD["training.batch_processor"],
    "chuk.training.utils.epoch_processor": _OLD["training.epoch_processor"],
    "chuk.training.utils.advantage": _ADVANTAGE,
    "chuk.training.utils.kl_divergence": _KL,
    "chuk.training.utils.log_probs": _LOG_PROBS,
    "chuk.data": Moved("chuk_lib.data", {"PreferenceDataset": "PairDataset"}),
    "chuk.data.base_dataset": _FOLDER,
    "chuk.data.batch_dataset": _FOLDER,
    "chuk.data.preference_dataset": _PAIRS,
    "chuk.data.rollout_buffer": _EPISODES,
    "chuk.data.episode": _EPISODES,
    "chuk.data.generators.math_generator": _MATH,
    "chuk.data.generators.batch_generator": _BATCHES,
    "chuk.data.preprocessing.batch_base": _BATCHES,
    "chuk.data.preprocessing.bucketing": _BUCKETS,
    "chuk.data.preprocessing.padding": _OLD["core.batch.padding_utils"],
    "chuk.data.preprocessing.tokenization": _OLD["core.batch.tokenization_utils"],
    "chuk.data.tokenizers": _TOKENIZERS,
    "chuk.data.tokenizers.custom_tokenizer": _TOKENIZERS,
    "chuk.data.tokenizers.loader": _TOKENIZERS,
    "chuk.data.tokenizers.vocab_utils": _VOCABULARY,
    "chuk.inference.generator": _GENERATOR,
    "chuk.inference.sampling": Moved("chuk_lib.inference.config"),
    "chuk.inference.cache": Moved("chuk_lib.inference.decoder"),
    "chuk.experts.base": _EXPERT,
    "chuk.experts.gru_expert": _EXPERT,
    "chuk.experts.lstm_expert": _EXPERT,
    **{f"chuk.env.{name}": moved for name, moved in _HYBRID.items()},
    "chuk.distributed": _SERVER,
    "chuk.distributed.parameter_server": _SERVER,
    "chuk.distributed.client": _SERVER,
    "chuk.utils.huggingface": _HUB,
    "chuk.utils.memory": _MEMORY,
    "chuk.utils.model_adapter": _ADAPTER,
    "chuk.utils.config_loader": _SETTINGS,
}

MOVED: dict[str, Moved] = {**_OLD, **_PLANNED}
