"""The kinds of head by name, and which learners a name and its choices stand for."""

from extract.errors import FxError
from heads.kinds.learners import Learner, Logistic
from heads.kinds.neighbours import Centroid, Neighbours
from heads.kinds.nystroem import LANDMARKS, NYSTROEM, NystroemMachine
from heads.kinds.support_vectors import EXACT_ROWS, KERNELS, SupportVectors
from heads.scaling import NORMALISATIONS

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
        if kernel == NYSTROEM:
            return NystroemMachine(normalize, class_weight)
        if kernel not in KERNELS:
            raise FxError(f"unknown kernel {kernel!r}; choose {_or(KERNELS, NYSTROEM, AUTO)}")
        return SupportVectors(kernel, normalize, class_weight)
    if kind not in KINDS:
        raise FxError(f"unknown kind of head {kind!r}; choose {_or(KINDS)}")
    if class_weight:
        raise FxError(f"{kind} knows no class weights; choose logreg or svm, or leave them out")
    return Neighbours(normalize) if kind == "knn" else Centroid(normalize)


def learners_for(
    kind: str, kernel: str, normalize: str, class_weight: str | None = None, *, rows: int
) -> tuple[list[Learner], list[str]]:
    """Make the learners among which a search chooses: ``auto`` stands for all of its choices.

    Returns
    -------
    learners : those that can be fitted on so many rows
    notes : why there are others than asked for, if there are

    Raises
    ------
    FxError
        Where a choice is none of those offered, or out of reach with so many rows.
    """
    kernels: tuple[str, ...] = (kernel,)
    notes = []
    if kind == "svm" and kernel == AUTO:
        kernels = KERNELS
        if rows > EXACT_ROWS:
            kernels = (NYSTROEM,)
            notes.append(
                f"{rows:,} rows are more than the {EXACT_ROWS:,} of an exact SVM: approximated "
                f"with {LANDMARKS:,} landmarks (Nyström)"
            )
    normalisations = NORMALISATIONS if normalize == AUTO else (normalize,)
    learners = [
        learner_for(kind, one, how, class_weight) for one in kernels for how in normalisations
    ]
    if kind == "svm" and rows > EXACT_ROWS and kernels != (NYSTROEM,):
        raise FxError(
            f"too many rows for an exact SVM; got {rows:,} where {EXACT_ROWS:,} are feasible; "
            "choose --kernel auto, which approximates, or fit logreg"
        )
    return learners, notes


def _or(*choices: tuple[str, ...] | str) -> str:
    flat = [name for one in choices for name in ((one,) if isinstance(one, str) else one)]
    return f"{', '.join(flat[:-1])} or {flat[-1]}"
