"""Settings of a fine-tuning, checked once, where they are made; recipes are named sets of them."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import msgspec

from finetune.data import AUGMENTATIONS, MIXES

AUTO = "auto"
# Default number of epochs; with few images there are more, to reach MIN_STEPS, up to MAX_EPOCHS.
DEFAULT_EPOCHS, MIN_STEPS, MAX_EPOCHS = 7, 200, 24
OPTIMISERS = ("adamw", "adam")
SCHEDULES = ("cosine", "constant")
BATCH_NORM = ("inference", "train")

# Raised when the same settings come to give other networks, so that no run counts as finished that
# an older version trained.
RECIPE_VERSION = 4

# What each sets where nothing else is asked for. ``keras-guide`` is the second phase of F. Chollet,
# "Transfer learning and fine-tuning" (keras.io, 2020), whose first phase the fitted head replaces;
# ``two-phase`` has both: the classifier alone, then the blocks at a rate a hundred times lower.
_KERAS: dict[str, Any] = {
    "optimiser": "adam",
    "schedule": "constant",
    "learning_rate": 1e-5,
    "final": 0.0,
    "layer_decay": 1.0,
    "label_smoothing": 0.0,
    "weight_decay": 0.0,
    "augment": "none",
}
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "keras-guide": _KERAS | {"epochs": 10},
    "two-phase": _KERAS | {"epochs": 15, "classifier_epochs": 5},
}


class TunedSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Settings that were found by trial; None where they were given."""

    learning_rate: float | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class FinetuneSettings:
    """How a network is trained.

    The defaults were chosen on 2,000 CIFAR-10 images of four classes (mobilenet_v2 at 128 pixels,
    all of it trained, 1,000 test images, one seed), where the head reaches 0.881 and these 0.930
    in six epochs: without label smoothing no epoch was better than the head, at 3e-5 as at 3e-4.

    Attributes
    ----------
    unfreeze : how many blocks train, counted from the output; 0 the classifier alone, ``all``
    from_scratch : begin with random weights instead of the fitted head
    epochs : most passes over the training rows, at least 1; None for 7, and for as many as 200
        steps take, 24 at most, where there are few rows
    final : share of the epochs, the last ones, that train on validation rows too, where those were
        set aside from the training rows; in [0, 1)
    classifier_epochs : how many of them, the first ones, train the classifier alone, at 1e-3
    learning_rate : of the classifier and the last block at its peak; None takes 3e-4, and 1e-3
        from scratch; ``auto`` has it found by a range test on training rows
    layer_decay : what the rate is multiplied by from each block to the one before it, in (0, 1]
    optimiser : ``adamw`` or ``adam``
    schedule : ``cosine`` (a linear rise over `warm_up`, then down to 0) or ``constant``
    warm_up : share of all steps in which the learning rate rises
    weight_decay : not applied to biases and normalisation
    batch_size : images a step, at least 1, or ``auto`` for what runs quickest
    micro_batch : images in memory at once, whose gradients add up to a step; None for all of them
    patience : epochs without a lower validation log loss than an earlier one's before training
        stops, where no final epochs follow; the head that it began with is none of them
    dropout : on the features, before the classifier
    label_smoothing : share of a label that is spread over all classes, in [0, 1)
    batch_norm : ``inference`` keeps the statistics of the pretrained network, ``train`` takes the
        batch's and moves them; from scratch they always train
    augment : a name of ``finetune.data.augmentation``, or ``auto``: ``flip`` where the head that
        training starts from classifies mirrored images as well as the images themselves,
        else ``none``; ``none`` from scratch, too
    mix : ``mixup``, ``cutmix`` or None
    views : augmented images of each image that are kept, where there is a frozen part; of
        ``flip`` there are two, the image and its mirror image
    precision : ``fp32`` or ``bf16`` (autocast)
    class_weight : ``balanced`` for classes that weigh the same however many rows they have, or
        None; probabilities are then those of equally common classes
    seed : order of the rows, dropout, augmentation, and the random weights

    Raises
    ------
    ValueError
        Where a value is out of range; it says what it got.
    """

    unfreeze: int | Literal["all"] = 1
    from_scratch: bool = False
    epochs: int | None = None
    final: float = 0.4
    classifier_epochs: int = 0
    learning_rate: float | Literal["auto"] | None = None
    layer_decay: float = 0.7
    optimiser: str = "adamw"
    schedule: str = "cosine"
    warm_up: float = 0.1
    weight_decay: float = 0.01
    batch_size: int | Literal["auto"] = 32
    micro_batch: int | None = None
    patience: int = 4
    dropout: float = 0.2
    label_smoothing: float = 0.1
    batch_norm: str = "inference"
    augment: str = AUTO
    mix: str | None = None
    views: int = 8
    precision: str = "fp32"
    class_weight: str | None = None
    seed: int = 0

    @classmethod
    def of_recipe(cls, recipe: str, **chosen: Any) -> "FinetuneSettings":
        """Make the settings of a recipe; what is chosen and not None takes its place in it."""
        if recipe not in RECIPES:
            raise ValueError(f"`recipe` must be one of {', '.join(RECIPES)}; got {recipe!r}")
        given = {name: value for name, value in chosen.items() if value is not None}
        return cls(**(RECIPES[recipe] | given))

    def __post_init__(self) -> None:
        if self.unfreeze != "all" and self.unfreeze < 0:
            raise ValueError(f"`unfreeze` must be 0 or more, or all; got {self.unfreeze}")
        if self.from_scratch and self.unfreeze != "all":
            raise ValueError(
                f"from scratch everything trains; got {self.unfreeze}; take `unfreeze=all`"
            )
        for name, allowed in {
            "precision": ("fp32", "bf16"),
            "optimiser": OPTIMISERS,
            "schedule": SCHEDULES,
            "batch_norm": BATCH_NORM,
            "augment": (AUTO, *AUGMENTATIONS),
            "mix": (None, *MIXES),
            "class_weight": (None, "balanced"),
        }.items():
            if (value := getattr(self, name)) not in allowed:
                choices = ", ".join(one for one in allowed if one)
                raise ValueError(f"`{name}` must be one of {choices}; got {value!r}")
        for name in ("epochs", "batch_size", "patience", "views", "micro_batch"):
            value = getattr(self, name)
            if value not in (None, AUTO) and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        rate = self.learning_rate
        if rate is not None and rate != "auto" and rate <= 0:
            raise ValueError(f"`learning_rate` must be above 0; got {self.learning_rate}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` must be in (0, 1]; got {self.layer_decay}")
        for name in ("dropout", "label_smoothing", "warm_up", "final"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1); got {getattr(self, name)}")
        epochs = self.epochs or DEFAULT_EPOCHS
        if not 0 <= self.classifier_epochs < epochs:
            raise ValueError(
                f"`epochs` must be more than the {self.classifier_epochs} that train the "
                f"classifier alone; got {epochs}"
            )
        if self.mix == "cutmix" and self.unfreeze != "all":
            raise ValueError(
                f"cutmix is for whole images; got {self.unfreeze}; take `unfreeze=all`"
            )

    def identity(self, rows: int | None = None, *, kept: bool = True) -> dict[str, Any]:
        """All that decides the result, together with the data: JSON values.

        What is left open is said as it comes to be, where that is known before training, and what
        has no effect is always the same.

        Parameters
        ----------
        rows : training rows; None where there are now more, now fewer
        kept : whether outputs of frozen blocks are, and so are augmented views
        """
        found: dict[str, Any] = {"recipe_version": RECIPE_VERSION}
        if self.learning_rate != "auto":
            found["learning_rate"] = float(self.peak_learning_rate)
        if self.batch_size != "auto":
            if rows is not None:
                found["epochs"] = self.epochs_for(rows)
            if self.micro_batch is not None and self.micro_batch >= self.batch_size:
                found["micro_batch"] = None
        if self.from_scratch:
            found["batch_norm"] = "train"
            if self.augment == AUTO:
                found["augment"] = "none"
        found["views"] = self.kept_views if kept else 0
        return asdict(self) | found

    def with_found(self, found: TunedSettings) -> "FinetuneSettings":
        """Put what was found by trial in the place of what was left to be found."""
        values = msgspec.structs.asdict(found)
        return replace(self, **{name: x for name, x in values.items() if x is not None})

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or its default.

        Raises
        ------
        ValueError
            Where it is still to be found.
        """
        if self.learning_rate == "auto":
            raise ValueError("the learning rate is still to be found; got 'auto'")
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if self.from_scratch else 3e-4

    def epochs_for(self, rows: int) -> int:
        """Epochs over a number of training rows, at most; the batch size must be known."""
        if self.epochs is not None:
            return self.epochs
        steps = max(1, rows // self.step_size)
        return min(MAX_EPOCHS, max(DEFAULT_EPOCHS, -(-MIN_STEPS // steps)))

    def final_epochs(self, epochs: int) -> int:
        """How many of the last epochs train on all rows; at least one is judged before them."""
        return min(round(self.final * epochs), epochs - 1)

    @property
    def kept_views(self) -> int:
        """How many augmented images of each image are kept, where there is a frozen part."""
        return {"none": 0, "flip": 1, AUTO: 1}.get(self.augment, self.views)

    @property
    def step_size(self) -> int:
        """Images a step.

        Raises
        ------
        ValueError
            Where it is still to be found.
        """
        if self.batch_size == "auto":
            raise ValueError("the batch size is still to be found; got 'auto'")
        return self.batch_size
