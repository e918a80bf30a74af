"""The kinds of head by name, and which learners a name and its choices stand for."""

from extract.errors import FxError
from heads.learners import Learner, Logistic
from heads.neighbours import Centroid, Neighbours
from heads.scaling import NORMALISATIONS
from heads.support_vectors import KERNELS, SupportVectors

KINDS = ("logreg", "svm", "knn", "centroid")
AUTO = "auto"


def learner_for(
    kind: str,
    kernel: str | None = None,
    normalize: str = "standard",
    class_weight: str | None = None,
) -> Learner:
    """Make the learner of a kind of head; `kernel` is of the SVM.

    Raises
    ------
    FxError
        Where a choice is none of those offered.
    """
    if normalize not in NORMALISATIONS:
        raise FxError(f"unknown normalisation {normalize!r}; choose {_or(NORMALISATIONS, AUTO)}")
    if class_weight not in (None, "balanced"):
        raise FxError(f"unknown class weight {class_weight!r}; choose balanced, or leave it out")
    if kind == "logreg":
        return Logistic(normalize, class_weight)
    if kind == "svm":
        if kernel not in KERNELS:
            raise FxError(f"unknown kernel {kernel!r}; choose {_or(KERNELS, AUTO)}")
        return SupportVectors(kernel, normalize, class_weight)
    if kind not in KINDS:
        raise FxError(f"unknown kind of head {kind!r}; choose {_or(KINDS)}")
    if class_weight:
        raise FxError(f"{kind} knows no class weights; choose logreg or svm, or leave them out")
    return Neighbours(normalize) if kind == "knn" else Centroid(normalize)


def learners_for(
    kind: str, kernel: str, normalize: str, class_weight: str | None = None
) -> list[Learner]:
    """Make the learners among which a search chooses: ``auto`` stands for all of its choices."""
    kernels = KERNELS if kernel == AUTO and kind == "svm" else (kernel,)
    normalisations = NORMALISATIONS if normalize == AUTO else (normalize,)
    return [learner_for(kind, one, how, class_weight) for one in kernels for how in normalisations]


def _or(*choices: tuple[str, ...] | str) -> str:
    flat = [name for one in choices for name in ((one,) if isinstance(one, str) else one)]
    return f"{', '.join(flat[:-1])} or {flat[-1]}"
