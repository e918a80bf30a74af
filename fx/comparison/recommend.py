"""What a comparison says: intervals, differences, what it recommends, and the rule of thumb.

The rule is the one that everybody is taught. Few or many images, like those that the network was
trained on or not: four quadrants, each with a strategy (as in A. Karpathy, "Transfer learning",
notes to CS231n, Stanford). Neither border is in the rule; those that are used here are said
wherever a quadrant is named.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from extract.backbones import Backbone
from extract.domain_shift import domain_distance
from extract.files import place
from extract.images import ImageEntry, ImageSource, Snapshot, batched, load_images
from fx.comparison.plan import REPEATED
from fx.comparison.statistics import Mean, Scores, shared_level
from fx.comparison.strategies import strategy_of
from fx.records import Difference, Estimate, Measurement, Quadrant, Recommendation

MANY = 2_000  # training images
ALIKE = 0.5  # of ``extract.domain_shift``
MOST_NEEDED = 100  # times as many images, or draws, as there are, beyond which none is named
SAMPLED_IMAGES = 64  # training images whose distance is measured
_RULES = {
    (False, True): ("head", "a linear classifier on frozen features"),
    (False, False): ("head", "a classifier on frozen features, best of an earlier layer"),
    (True, True): ("network", "fine-tuning"),
    (True, False): ("network", "fine-tuning all of it, or training from scratch"),
}


def estimates(scores: Scores) -> list[Estimate]:
    """Give every strategy's mean score at every size, with an interval and what that covers."""
    found = []
    for strategy, sizes in scores.tables.items():
        for size in sizes:
            one = scores.mean_of(strategy, size)
            found.append(
                Estimate(strategy, size, one.draws, one.mean, one.interval(), _covers(one))
            )
    return found


def differences(scores: Scores) -> list[Difference]:
    """Compare strategies pair by pair at every size, paired by draw and image.

    Intervals hold for one pair at a time; what holds for all of them together is the
    recommendation.
    """
    found = []
    for a, b in combinations(scores.tables, 2):
        for size in sorted(scores.tables[a].keys() & scores.tables[b].keys()):
            gain = scores.gain_of(a, b, size)
            found.append(
                Difference(size, a, b, gain.draws, gain.mean, gain.interval(), _covers(gain))
            )
    return found


def _covers(mean: Mean) -> str:
    if mean.known:
        return mean.covers
    return f"no interval: {mean.units} {mean.unit}, and {mean.fewest} are needed"


@dataclass(frozen=True)
class Choice:
    """The strategy that the scores at the largest size speak for.

    Attributes
    ----------
    strategy : the chosen one
    order : all that were measured at that size, the cheapest first
    level : of an interval whose bounds are each right, in all that the choice rests on, with a
        chance of 95 %
    """

    strategy: str
    order: tuple[str, ...]
    level: float


def choose(scores: Scores, seconds: Mapping[str, float], prefer: str = "cheap") -> Choice:
    """Choose a strategy at the largest size.

    The cheapest that no dearer one is shown to beat (see ``_by_cost``). Each strategy in turn, from
    the cheapest on, is compared with all dearer ones, at an error of 5 % shared by those
    (Bonferroni), and passed over if one is shown to be better; the next is looked at only then. So
    the chance to pass over one that nothing beats is 5 % for the whole walk (hypotheses tested in a
    fixed order: W. Maurer, L. Hothorn and W. Lehmacher, 1995).

    Parameters
    ----------
    scores : by the metric that decides
    seconds : of a run at the largest size, by strategy
    prefer : "cheap", or "best" for the one with the best mean, whatever is shown
    """
    size = scores.sizes[-1]
    sign = 1 if scores.metric.higher_is_better else -1
    means = {name: sign * float(table.mean()) for name, table in scores.at(size).items()}
    order = _by_cost(means, seconds)
    for position, strategy in enumerate(order):
        dearer = order[position + 1 :]
        level = shared_level(len(dearer))
        if not any(scores.gain_of(other, strategy, size).is_positive(level) for other in dearer):
            break
    if prefer == "best":
        # of equal ones the cheapest
        strategy = max(order, key=lambda name: means[name])
        level = shared_level(len(order) - 1)
    return Choice(strategy, order, level)


def _by_cost(means: Mapping[str, float], seconds: Mapping[str, float]) -> tuple[str, ...]:
    """Sort strategies by what they cost; of those that cost about the same, the best comes first.

    About the same is up to half as much again and five seconds more.
    """
    found: list[list[str]] = []
    for name in sorted(means, key=lambda name: seconds[name]):
        if found and seconds[name] <= 1.5 * seconds[found[-1][0]] + 5:
            found[-1].append(name)
        else:
            found.append([name])
    return tuple(n for alike in found for n in sorted(alike, key=lambda name: -means[name]))


def recommend(
    results: Sequence[Measurement],
    scores: Scores,
    others: Sequence[Scores] = (),
    prefer: str = "cheap",
) -> Recommendation:
    """Recommend a strategy at the largest size; see ``choose``.

    Parameters
    ----------
    results : of which the seconds, and the commonest class count
    scores : by the metric that decides
    others : by other metrics; where one would have chosen otherwise, that is said
    prefer : "cheap" or "best"
    """
    size = scores.sizes[-1]
    seconds = _seconds(results, size)
    choice = choose(scores, seconds, prefer)
    chosen, order = choice.strategy, choice.order
    place = order.index(chosen)
    told = [_figures(scores, chosen, size, seconds[chosen])]
    rivals = [
        max(some, key=lambda other: scores.gain_of(other, chosen, size).mean)
        for some in (order[:place], order[place + 1 :])
        if some
    ]
    told += [_against(scores, choice, rival, size, seconds) for rival in rivals]
    otherwise: dict[str, list[str]] = defaultdict(list)
    for other in others:
        otherwise[choose(other, seconds, prefer).strategy].append(other.metric.label)
    told += [
        f"By {' and '.join(labels)} it would be {strategy}."
        for strategy, labels in otherwise.items()
        if strategy != chosen
    ]
    headline = _headline(chosen)
    cheaper = [scores.gain_of(chosen, other, size) for other in order[:place]]
    if len(order) > 1 and not any(gain.is_positive(choice.level) for gain in cheaper):
        headline = f"Use {chosen}: nothing is shown to be better"
    if (majority := _no_better_than_majority(results, scores, others, chosen, size)) is not None:
        headline = (
            f"Nothing is learned: {chosen} is not shown to be better than always naming the "
            f"commonest class ({majority:.3f})"
        )
    return Recommendation(chosen, headline, " ".join(told))


def _headline(strategy: str) -> str:
    network = strategy.partition(" on ")[2]
    return strategy_of(strategy).headline + (f" of {network}" if network else "")


def _no_better_than_majority(
    results: Sequence[Measurement],
    scores: Scores,
    others: Sequence[Scores],
    strategy: str,
    size: int,
) -> float | None:
    """Accuracy of always naming the commonest class, where a strategy is not shown to beat it."""
    by_accuracy = next((one for one in (scores, *others) if one.metric.is_share), None)
    majority = next((one.majority for one in results if one.majority is not None), None)
    if by_accuracy is None or majority is None:
        return None
    bounds = by_accuracy.mean_of(strategy, size).interval()
    return majority if bounds is not None and bounds[0] <= majority else None


def _figures(scores: Scores, strategy: str, size: int, seconds: float) -> str:
    one = scores.mean_of(strategy, size)
    bounds = one.interval()
    sure = "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f} with "
    return (
        f"{strategy}: {scores.metric.label} {one.mean:.3f} after {size:,} training images, in "
        f"{_duration(seconds)} ({sure}{_covers(one)})."
    )


def _against(
    scores: Scores, choice: Choice, rival: str, size: int, seconds: Mapping[str, float]
) -> str:
    """Say what is gained over a cheaper strategy, or what a dearer one would gain."""
    chosen = choice.strategy
    cheaper = choice.order.index(rival) < choice.order.index(chosen)
    winner, loser = (chosen, rival) if cheaper else (rival, chosen)
    gain = scores.gain_of(winner, loser, size)
    spent = seconds[winner] - seconds[loser]
    more = f"for {_duration(abs(spent))} {'more' if spent >= 0 else 'less'}"
    what = f"Over {rival} it gains" if cheaper else f"{rival} gains"
    bounds = gain.interval(choice.level)
    if bounds is None:
        said = f"{what} {_amount(scores, gain.mean)} {more}; what holds for other test images"
        return f"{said} cannot be said of {gain.units} {gain.unit}."
    low, high = (_amount(scores, bound) for bound in bounds)
    if bounds[0] > 0:
        given = ", if draws differ by no more than 2.5 points" if gain.assumed else ""
        return f"{what} {_amount(scores, gain.mean)} (at least {low}{given}) {more}."
    could = _amount(scores, gain.mean - bounds[0])
    if gain.mean <= 0:
        none = f"{what} nothing {more} ({_amount(scores, gain.mean)}, at most {high})"
        return f"{none}; {could} would have been shown."
    return (
        f"{what} {_amount(scores, gain.mean)} (at most {high}) {more}, which is not shown: a gain "
        f"of {could} would have been{_what_settles(gain, choice.level, size)}."
    )


def _what_settles(gain: Mean, level: float, size: int) -> str:
    """Say how many test images, or else draws, would show a gain as large as the one measured."""
    if gain.assumed:
        return ", with draws taken to differ by 2.5 points; `--seeds 3` measures by how much"
    images, draws = gain.needed(level)
    if images is not None and images <= MOST_NEEDED * gain.units:
        rounded = round(images, 2 - len(str(images)))
        return f", or this one with about {rounded:,} {gain.unit}"
    if draws is not None and draws <= MOST_NEEDED * gain.draws:
        # of more images than these, all can be drawn in one way only
        option = " (`--seeds`)" if size <= REPEATED else ""
        return f", or this one with about {draws} draws{option}"
    return ""


def _amount(scores: Scores, gain: float) -> str:
    """A gain in points, or in units of the metric; no zero with a sign."""
    if scores.metric.needs_probabilities:
        return f"{round(gain, 3) + 0.0:+.3f}"
    return f"{round(100 * gain, 1) + 0.0:+.1f} points"


def _seconds(results: Sequence[Measurement], size: int) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for one in results:
        if one.n_train == size:
            found[one.strategy].append(one.number("seconds") or 0.0)
    return {strategy: sum(values) / len(values) for strategy, values in found.items()}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def quadrant_of(
    backbone: Backbone, snapshot: Snapshot, recommended: str, scores: Scores, max_image_mb: int
) -> Quadrant:
    """Name the quadrant, what the rule says there, and whether the measurement agrees.

    Parameters
    ----------
    backbone : with its trained weights
    snapshot : of the images
    recommended : strategy that the measurement recommends
    scores : of all strategies
    max_image_mb : 2**20 bytes that an image may take as 8-bit RGB
    """
    train = snapshot.split("train")
    # keys are hashes: the first of them are a sample, and the same one every time
    some = sorted(train, key=lambda row: row.key)[:SAMPLED_IMAGES]
    entries = tuple(ImageEntry(row.path, None, None, None) for row in some)
    source = ImageSource(place(snapshot.root), "unlabelled", entries, (), max_image_mb)
    distance = distance_of_source(backbone, source)
    return describe_quadrant(len(train), distance, recommended, _beaten(scores, recommended))


def _beaten(scores: Scores, recommended: str) -> set[str]:
    """Strategies that the recommended one is shown to beat at the largest size."""
    size = scores.sizes[-1]
    others = [name for name in scores.at(size) if name != recommended]
    level = shared_level(len(others))
    return {one for one in others if scores.gain_of(recommended, one, size).is_positive(level)}


def distance_of_source(backbone: Backbone, source: ImageSource) -> float | None:
    """Distance of images from those that the network was trained on; see ``extract.domain_shift``.

    They are seen at the size at which the network's statistics were taken.
    """
    loaded = load_images(source, backbone.preprocessing.at_size(backbone.trained_size))
    pixels = (one.pixels for one in loaded if one.pixels is not None)
    return domain_distance(backbone, batched(pixels, 32))


def describe_quadrant(
    n_train: int, distance: float | None, recommended: str | None, beaten: Iterable[str] = ()
) -> Quadrant:
    """Name the quadrant of a data set; see ``quadrant_of``.

    ``beaten`` are the strategies that the recommended one is shown to beat.
    """
    many = n_train >= MANY
    alike = None if distance is None else distance <= ALIKE
    # unlike ones do not change which family the rule names
    family, rule = _RULES[many, alike is not False]
    size = f"{'many' if many else 'few'} images ({n_train:,}; many from {MANY:,})"
    if distance is None:
        like = "how like they are to the network's own cannot be told (it has no batch norm)"
    else:
        like = (
            f"{'like' if alike else 'unlike'} those that the network was trained on "
            f"(distance {distance:.2f}; unlike above {ALIKE})"
        )
    said = f"By the rule of thumb: {size}, {like}: {rule}."
    agrees = None
    if recommended is not None:
        heads = family == "head"
        if strategy_of(recommended).on_features == heads:
            agrees, verdict = True, "The measurement agrees."
        elif any(strategy_of(one).on_features == heads for one in beaten):
            agrees, verdict = False, f"The measurement contradicts it: {recommended} is better."
        else:
            verdict = "The measurement does not decide that."
        said += f" {verdict}"
    return Quadrant(many, alike, distance, rule, agrees, said)
