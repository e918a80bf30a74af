"""The kinds of head."""

from heads.kinds.learners import STEP, Features, Labels, Learner, Logistic, Scores, Trial
from heads.kinds.nystroem import NYSTROEM
from heads.kinds.registry import KINDS, learner_for, learners_for
from heads.kinds.support_vectors import KERNELS

__all__ = [
    "KERNELS",
    "KINDS",
    "NYSTROEM",
    "STEP",
    "Features",
    "Labels",
    "Learner",
    "Logistic",
    "Scores",
    "Trial",
    "learner_for",
    "learners_for",
]
