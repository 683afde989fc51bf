"""Sections of adapters (LoRA) and of the frozen base that they share."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pit.config.rules import COUNT, DECAY, POSITIVE, Section


@dataclass(frozen=True)
class AdapterConfig(Section):
    """Low-rank adapters of a stage (LoRA, Hu et al., arXiv 2106.09685): y = x W + scale x A B, with W frozen.

    rank: width of x A.
    alpha: numerator of the scale.
    rank_stabilised: scale by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732) instead of alpha / rank.
    dropout: share of an adapter's inputs that a training step of a supervised stage sets to 0.
    targets: regular expression that the whole name of a projection must match, as PEFT names it, for example
        `model.layers.0.self_attn.q_proj`.
    """

    rank: Annotated[int, COUNT] = 16
    alpha: Annotated[float, POSITIVE] = 32.0
    rank_stabilised: bool = False
    dropout: Annotated[float, DECAY] = 0.0
    targets: str = r".*\.(q|k|v|o|gate|up|down)_proj"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.targets)
            fault = ""
        except re.error as error:
            fault = str(error)
        self._require(
            not fault,
            "targets",
            f"must be a regular expression ({fault})",
            r"for example {path}=.*\.(q|v)_proj",
        )

    @property
    def scale(self) -> float:
        """Factor of x A B.

        >>> AdapterConfig(rank=4, alpha=8.0).scale, AdapterConfig(rank=4, alpha=8.0, rank_stabilised=True).scale
        (2.0, 4.0)
        """
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True)
class BaseConfig(Section):
    """Model that all models of a run start from, and that stays frozen under their adapters.

    path: folder of a pretrained language model as transformers writes it, a GGUF file, or a folder of PEFT; None:
        random weights.
    adapter: folder of PEFT whose adapters are merged into that model first.
    dtype: dtype in which the frozen weights are held. What trains, and the states of optimizers, are float32.
    """

    path: str | None = None
    adapter: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.adapter is None or self.path is not None,
            "adapter",
            "needs a model that it adapts",
            "name that model with --model, or leave {path} out",
        )
