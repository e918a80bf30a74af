"""What the stages return: frozen records, dictionaries only where JSON is written or read."""

from collections.abc import Mapping
from typing import Any, Self

import msgspec
from msgspec import UNSET, UnsetType

from extract.images import FailedImage
from extract.records import Record
from heads.calibration import Calibration
from heads.evaluation import Evaluation


class NetworkUsed(Record, frozen=True):
    """A network below a model.

    Attributes
    ----------
    name, weights : of the backbone, and where its weights came from
    layer, size, crops : what is taken of it, the pixels that it sees, how many squares of an image
    """

    name: str
    weights: str
    size: int
    layer: str = "pool"
    crops: int = 1


class DataUsed(Record, frozen=True):
    """What a model is made of and measured on.

    Attributes
    ----------
    name : of the images' folder
    counts : images by split and class
    test_was_given : whether the test split is the user's own
    split_seed : of the other
    groups : how many the images are of; None where there are none
    left_out : images in no split, by the reason
    """

    name: str
    counts: dict[str, dict[str, int]]
    test_was_given: bool
    split_seed: int
    groups: int | None
    left_out: dict[str, int]


class MeasuredModel(Record, frozen=True, kw_only=True):
    """A head or a network that was fitted, measured and saved.

    Attributes
    ----------
    path : folder that it is saved in
    backbone : name; of joined features several, with "+" between them
    snapshot : name of the images' state
    classes : in the order of the probabilities' columns
    n_train, n_validation : rows that it was fitted on, and that it was chosen by
    evaluation : on rows that chose nothing; in JSON its fields stand beside the others
    notes : what was not as asked for, and what was found by trial
    seconds : of fitting and measuring
    calibration : temperature, log loss and calibration error before and after
    networks, data : below the model, and below the figures
    """

    path: str
    backbone: str
    snapshot: str
    classes: tuple[str, ...]
    n_train: int
    n_validation: int
    evaluation: Evaluation
    notes: tuple[str, ...]
    seconds: float
    # heads of earlier versions do not say
    calibration: Calibration | UnsetType = UNSET
    networks: tuple[NetworkUsed, ...] = ()
    data: DataUsed | UnsetType = UNSET

    def as_json(self) -> dict[str, Any]:
        """Turn into values that JSON can hold, the evaluation's fields beside the others."""
        plain = super().as_json()
        del plain["evaluation"]
        return plain | self.evaluation.as_dict()

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Make a record of JSON values; what is no field is the evaluation's."""
        known = {name: value for name, value in plain.items() if name in cls.__struct_fields__}
        rest = {name: value for name, value in plain.items() if name not in known}
        return msgspec.convert(known | {"evaluation": Evaluation.from_dict(rest)}, cls)


class DoubtfulLabel(Record, frozen=True):
    """A label that may be wrong.

    Attributes
    ----------
    path, label, split, group : as in a table of images; "" where nothing is said
    suggested : the likeliest other class
    margin : probability that the label is right less that of the other class
    contradicted : whether the other class is likelier
    """

    path: str
    label: str
    split: str
    group: str
    suggested: str
    margin: float
    contradicted: bool


class DoubtfulLabels(Record, frozen=True):
    """Labels that may be wrong.

    Attributes
    ----------
    audited, contradicted : how many
    contradicted_if_none_wrong : how many the head's own mistakes would contradict, estimated
    first : the most doubtful ones
    table : to correct, and to give back to an extraction
    page : to look at
    """

    audited: int
    contradicted: int
    contradicted_if_none_wrong: float
    first: tuple[DoubtfulLabel, ...]
    table: str
    page: str

    @property
    def anyway(self) -> str:
        """How many would be contradicted if none were wrong, in words."""
        count = round(self.contradicted_if_none_wrong)
        return f"about {count:,}" if count else "less than one"


class HeadResult(MeasuredModel, frozen=True, kw_only=True):
    """A head that was fitted on stored features.

    Attributes
    ----------
    head : name of its folder
    kind : name of a head
    kernel : of an SVM
    normalize : how features were scaled
    c : the regularisation that was chosen, or the number of neighbours
    audit : the labels that may be wrong, where they were asked for
    """

    head: str
    kind: str
    kernel: str | None
    normalize: str
    c: float
    audit: DoubtfulLabels | UnsetType = UNSET

    @property
    def chosen(self) -> str:
        """What was chosen for it, in words."""
        from heads.kinds import HEADS

        choice = HEADS[self.kind].learners[self.kernel].choice_text.format(self.c)
        kernel = f"{self.kernel} kernel" if self.kernel else ""
        return ", ".join(filter(None, (choice, f"normalisation {self.normalize}", kernel)))


class FinetunedModel(MeasuredModel, frozen=True, kw_only=True):
    """A network that was fine-tuned.

    Attributes
    ----------
    unfreeze, from_scratch, recipe : as asked for
    trainable_parameters : how many numbers trained
    epochs, best_epoch : passes made, and the one that is kept; 0 is the head
    n_fitted : images that the kept weights were fitted on
    augment, flips, history : see ``finetune.finetuning.FinetuneResult``
    images_per_second : of training
    """

    unfreeze: int | str
    from_scratch: bool
    recipe: str
    trainable_parameters: int
    epochs: int
    best_epoch: int
    n_fitted: int
    images_per_second: float
    augment: str
    flips: dict[str, Any] | None
    history: list[dict[str, float | int | None]]


class LikelyClass(Record, frozen=True):
    """A class, and its probability."""

    label: str
    probability: float


class Prediction(Record, frozen=True, kw_only=True):
    """What a model says of one image.

    Attributes
    ----------
    path : of the image
    label : None where it is unlike the training images
    probability : of the label; None where there is none
    top : the likeliest classes, where they were asked for
    probabilities : of all classes, where they were asked for
    labels : the conformal set, likeliest first, where it was asked for; it may be empty
    distance : from the training images, where unlike images were to be rejected
    """

    path: str
    label: str | None
    probability: float | None
    top: tuple[LikelyClass, ...] | UnsetType = UNSET
    probabilities: dict[str, float] | UnsetType = UNSET
    labels: tuple[str, ...] | UnsetType = UNSET
    distance: float | UnsetType = UNSET


class Sorted(Record, frozen=True):
    """Images that were sorted into folders.

    Attributes
    ----------
    path : folder of those folders
    written, already_there : images
    """

    path: str
    written: int
    already_there: int


class ExportedModel(Record, frozen=True):
    """A model that was written as one file.

    Attributes
    ----------
    path, model : of the file, and of the model's folder
    classes : in the order of the probabilities
    megabytes : of the file
    largest_difference : of a probability that the file and the model give images of noise
    card : file that describes it; None where the model's folder has no result
    """

    path: str
    model: str
    classes: tuple[str, ...]
    megabytes: float
    largest_difference: float
    card: str | None = None


class Predictions(Record, frozen=True):
    """What a model says of images.

    Attributes
    ----------
    model : as it was named
    root : folder that paths are relative to
    predictions : of the images that can be read
    failed : the others
    rejected : how many have no label, where that was asked for
    mean_set_size : of the conformal sets, where they were asked for; None without images
    notes : where the model knows too little for what was asked for
    saved : file that they were saved in, where that was asked for
    sorted : images that were sorted into folders, where that was asked for
    """

    model: str
    root: str
    predictions: tuple[Prediction, ...]
    failed: tuple[FailedImage, ...]
    rejected: int | UnsetType = UNSET
    mean_set_size: float | UnsetType | None = UNSET
    notes: tuple[str, ...] = ()
    saved: str | UnsetType = UNSET
    sorted: Sorted | UnsetType = UNSET
