"""Logistic regression, multinomial, with an L2 penalty."""

from sklearn.linear_model import LogisticRegression

from heads.kinds._linear import LinearLearner
from heads.learner import Features, HeadKind, grid_of_c
from heads.solver import Problem


class Logistic(LinearLearner):
    """Multinomial logistic regression; its scores are its logits."""

    problem = Problem
    sharpness = 1
    share = 0.5

    def estimator(self, c: float) -> LogisticRegression:
        """Make scikit-learn's own classifier."""
        return LogisticRegression(C=c, class_weight=self.class_weight)

    def grid(self, features: Features, fewest: int) -> list[float]:
        """Ten values from 0.001 to 32, or as far for rows of another length."""
        return grid_of_c(-3, self.normalize, features)


HEAD = HeadKind("logreg", {None: Logistic}, takes_class_weight=True)
