"""Experts: small policies that are no language models, recurrent or not, and PPO that trains them
in Gymnasium environments. Names are loaded when they are used."""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from chuk_lib.experts.base import FeedForwardExpert as FeedForwardExpert
    from chuk_lib.experts.base import GRUExpert as GRUExpert
    from chuk_lib.experts.base import LSTMExpert as LSTMExpert
    from chuk_lib.experts.base import RNNExpertBase as RNNExpertBase
    from chuk_lib.experts.config import ExpertConfig as ExpertConfig
    from chuk_lib.experts.config import ExpertPPOConfig as ExpertPPOConfig
    from chuk_lib.experts.registry import ExpertRegistry as ExpertRegistry
    from chuk_lib.experts.registry import create_expert as create_expert
    from chuk_lib.experts.registry import create_preset as create_preset
    from chuk_lib.experts.registry import load_expert as load_expert

_EXPORTS = {
    **dict.fromkeys(("FeedForwardExpert", "GRUExpert", "LSTMExpert", "RNNExpertBase"), "base"),
    **dict.fromkeys(("ExpertConfig", "ExpertPPOConfig"), "config"),
    **dict.fromkeys(
        ("ExpertRegistry", "create_expert", "create_preset", "load_expert"), "registry"
    ),
}


def __getattr__(name: str) -> object:
    from chuk_lib.utils.lazy import exported

    return exported(__name__, _EXPORTS, name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
