"""Settings of a fine-tuning, checked once, where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FinetuneSettings:
    """How a network is trained.

    Attributes
    ----------
    unfreeze : how many blocks train, counted from the output; 0 the classifier alone, ``all``
    from_scratch : begin with random weights instead of the fitted head
    epochs : most passes over the training rows, at least 1
    learning_rate : of AdamW at its peak; None takes 1e-4, and 1e-3 from scratch
    batch_size : images a step, at least 1
    patience : epochs without a better validation log loss before training stops
    weight_decay : of AdamW, not applied to biases and normalisation
    dropout : on the features, before the classifier
    warm_up : share of all steps in which the learning rate rises
    precision : ``fp32`` or ``bf16`` (autocast)
    seed : order of the rows, dropout, and the random weights
    """

    unfreeze: int | Literal["all"] = 1
    from_scratch: bool = False
    epochs: int = 20
    learning_rate: float | None = None
    batch_size: int = 32
    patience: int = 4
    weight_decay: float = 0.01
    dropout: float = 0.2
    warm_up: float = 0.1
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unfreeze != "all" and self.unfreeze < 0:
            raise ValueError(f"unfreeze must be 0 or more, or 'all'; got {self.unfreeze}")
        if self.from_scratch and self.unfreeze != "all":
            raise ValueError(
                f"from scratch everything trains; got unfreeze {self.unfreeze}, expected 'all'"
            )
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"training is in fp32 or bf16; got {self.precision!r}")
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0; got {self.learning_rate}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); got {self.dropout}")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or its default."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if self.from_scratch else 1e-4
