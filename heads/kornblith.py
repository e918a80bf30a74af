"""The protocol of a published comparison, so that results can be set beside the literature's.

S. Kornblith, J. Shlens and Q. V. Le, "Do Better ImageNet Models Transfer Better?" (CVPR 2019):
logistic regression by L-BFGS on features as they are, with one of 45 L2 penalties between 1e-6
and 1e5, the one with the best accuracy on validation images; then fitted again on training and
validation images together.
"""

import numpy as np

from heads.kinds import Features, Logistic

KORNBLITH = "kornblith"


class KornblithLogistic(Logistic):
    """Logistic regression whose 45 values of C are 1 over the protocol's penalties.

    The paper does not say whether its penalty is added to the sum or to the mean of the losses;
    here it is the sum, as in scikit-learn's LogisticRegression.
    """

    extensible = False
    by_accuracy = True

    def __init__(self) -> None:
        super().__init__("none")

    def grid(self, features: Features, fewest: int) -> list[float]:
        """The 45 values, ascending: 1e-5 to 1e6."""
        return list(map(float, 1 / np.logspace(5, -6, 45)))
