"""The parts of a run's page, each as HTML; empty where there is nothing to show."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from groupwise.report.charts import Series, confusion_grid, lines, reliability
from groupwise.report.findings import confused_pairs
from groupwise.report.html_page import breakable, literal, table
from groupwise.report.looking import Alike, Look, Shown
from groupwise.report.pictures import Picture
from groupwise.report.runs import RunRecord
from groupwise.report.tables import count, duration, large, share, size, sortable, text
from groupwise.texts import json_text

MOST_SUSPECT = 0.1
"""The share of the labels above which a network that finds them suspect is likely wrong itself."""

MOST_IN_A_GRID, PAIRS, CLASSES, NAMES = 30, 12, 20, 200
"""The classes that the confusion matrix has at most; how many pairs, classes and names are listed before the rest."""


def curves(record: RunRecord) -> str:
    """Return loss, accuracy and learning rate by epoch."""
    if not record.rows:
        return ""
    epochs, judge = _column(record, "epoch"), record.judge
    charts = [
        lines(
            title,
            [
                Series("training", epochs, _column(record, name), "training"),
                Series(judge, epochs, _column(record, f"{judge}_{name}"), "judged"),
            ],
            written,
        )
        for title, name, written in (("Accuracy", "accuracy", percent), ("Loss", "loss", "{:.3g}".format))
    ]
    rate = Series("learning rate", epochs, _column(record, "learning_rate"), "judged")
    charts.append(lines("Learning rate", [rate], "{:.3g}".format, from_zero=True))
    head = {
        "epoch": "{:g}".format,
        "accuracy": percent,
        f"{judge}_accuracy": percent,
        "loss": "{:.4f}".format,
        f"{judge}_loss": "{:.4f}".format,
        "learning_rate": "{:.3g}".format,
        "seconds": "{:,.1f}".format,
        "images_per_second": "{:,.0f}".format,
    }
    rows = [[written(row.get(name, math.nan)) for name, written in head.items()] for row in record.rows]
    titles = [name.replace("_", " ") for name in head]
    every = table("every epoch", titles, rows)
    charts.append(_kept(record))
    return f'<div class="charts">\n{"".join(charts)}</div>\n<details><summary>Every epoch</summary>\n{every}</details>'


def _kept(record: RunRecord) -> str:
    """Return which epoch's model is the best one, and what further data say of it."""
    summary, facts = record.summary, {}
    if _is_number(summary.get("best_epoch")) and _is_number(summary.get("best_accuracy")):
        chosen = f"{summary['best_accuracy']:.2%} of the {record.judge} images, which chose it"
        facts["best.keras"] = f"epoch {summary['best_epoch']:,}, {chosen}"
    tests = summary.get("tests")
    for name, test in tests.items() if isinstance(tests, dict) else ():
        facts[f"on {name}"] = (
            f"{test['accuracy']:.2%} of {test['images']:,} images, loss {test['loss'] or math.nan:.4f}"
        )
    facts |= {"last.keras": f"epoch {len(record.rows)}: all below is of this one"} if facts else {}
    return f"<div><h3>Models</h3>\n{_facts('models', facts)}</div>" if facts else ""


def _column(record: RunRecord, name: str) -> list[float]:
    return [row.get(name, math.nan) for row in record.rows]


def percent(value: float) -> str:
    """Return a share as a percentage, with as many digits as tell shares of a chart apart."""
    return f"{100 * value:.4g}%"


def classes(seen: Look) -> str:
    """Return recall and precision of each class, the worst ones first."""
    numbers = zip(seen.class_names, seen.evaluation.per_class(), strict=True)
    # What has no images, or was never guessed, has no share, and stands at the end.
    ordered = sorted(numbers, key=lambda one: (not one[1][0], one[1][1], one[0]))
    rows = [
        [text(name), share(recall), share(precision), count(images)] for name, (images, recall, precision) in ordered
    ]
    head = ("class", "recall", "precision", "images")
    said = _say(
        "The worst ones first: recall is the share of a class's images that were named rightly, precision the share of "
        "the images so named that are of the class."
    )
    if len(rows) <= CLASSES:
        return said + sortable("classes", head, rows, by=1)
    first = sortable(f"the {CLASSES} worst classes", head, rows[:CLASSES], by=1)
    every = sortable("all classes", head, rows, by=1)
    return f"{said}{first}\n<details><summary>All {len(rows):,} classes</summary>\n{every}</details>"


def confusion(seen: Look) -> str:
    """Return the confusion matrix, and the pairs of classes that are confused most often."""
    matrix, names = seen.evaluation.confusion, seen.class_names
    pairs = confused_pairs(matrix, PAIRS)
    if not pairs:
        return _say("No image was taken for one of another class.")
    rows = [[text(names[pair.label]), text(names[pair.guess]), count(pair.images), share(pair.share)] for pair in pairs]
    listed = sortable("most confused classes", ("class", "taken for", "images", "of the class"), rows, by=-1)
    if len(names) > MOST_IN_A_GRID:
        return _say(f"The pairs of the {len(names):,} classes that are confused most often.") + listed
    said = _say(
        "A row is a class, a column what its images were taken for: the darker, the more of the class. Mistakes have "
        "their own colour, and the root of their share, so that rare ones can be seen. Point at a cell for its numbers."
    )
    grid = f'<div class="matrix">{confusion_grid(matrix, names)}</div>'
    return f"{said}{grid}\n<details><summary>The most confused pairs</summary>\n{listed}</details>"


def mistakes(seen: Look) -> str:
    """Return the most confident mistakes as pictures."""
    if not seen.mistakes:
        return _say("There are none.") if seen.calibration else ""
    heat = seen.lacks.get("heat")
    beside = "beside each where it looked for what it guessed (Grad-CAM)" if heat is None else literal(heat)
    return _say(f"Wrong guesses that it was surest of; {beside}.") + _photos(seen.mistakes)


def doubtful(seen: Look) -> str:
    """Return the least certain hits as pictures."""
    return _say("Right guesses that it was least sure of.") + _photos(seen.doubtful) if seen.doubtful else ""


def suspects(seen: Look) -> str:
    """Return the images whose label is likely wrong: the first ones as pictures, of the rest the names."""
    if seen.suspects is None:
        return _say(f"Not checked. {literal(seen.lacks['suspects'])}") if "suspects" in seen.lacks else ""
    total = seen.evaluation.count
    said = (
        f"{len(seen.suspects):,} of {total:,} labels: another class than the label's is as likely as it is on average "
        "in images of its own (confident learning). "
    )
    if len(seen.suspects) > MOST_SUSPECT * total:
        said += "With so many, most are the network's mistakes: a better one tells more."
    else:
        said += "Look before you change a label."
    with_pictures = [one for one in seen.suspects if one.picture is not None]
    every = [f"{one.name}: {one.label}, likely {one.guess}" for one in seen.suspects]
    if not seen.suspects:
        return _say(f"None of the {total:,} labels, as far as the network can tell (confident learning).")
    return _say(said) + _photos(with_pictures) + _names("All of them by name", every)


def doubles(seen: Look) -> str:
    """Return the images to test on that look like ones that were trained on."""
    if seen.doubles is None:
        return _say(f"Not checked. {literal(seen.lacks['doubles'])}") if "doubles" in seen.lacks else ""
    if not seen.doubles:
        return _say("No image that is tested on looks like one that was trained on, by a perceptual hash of each.")
    said = (
        f"{len(seen.doubles):,} of {seen.evaluation.count:,} images that are tested on (left) look like ones that were "
        "trained on (right), by a perceptual hash of each. Copies make the accuracy better than it is for new images."
    )
    every = [f"{one.names[0]} = {one.names[1]}, {one.distance} of 64 bits apart" for one in seen.doubles]
    shown = "".join(map(_double, (one for one in seen.doubles if all(one.pictures))))
    return _say(said) + f'<ul class="photos">{shown}</ul>' + _names("All of them by name", every)


def calibration(seen: Look) -> str:
    """Return the reliability diagram and the expected calibration error."""
    found = seen.calibration
    if found is None:
        return ""
    gap = found.confidence - found.accuracy
    sure = "as sure as it is right" if abs(gap) < 0.01 else "too sure" if gap > 0 else "not sure enough"
    said = (
        f"<p>Expected calibration error <b>{found.error:.2%}</b>. On average it is {found.confidence:.1%} sure, and "
        f"{found.accuracy:.1%} of its guesses are right: it is {sure}.</p>"
        '<p class="say">A bar is the share of right guesses among those of about the same confidence, a short line '
        "their mean confidence; where they meet, the confidence can be believed. Below, how many guesses there are.</p>"
    )
    return f'<div class="pair">{reliability(found)}<div>{said}</div></div>'


def cost(record: RunRecord) -> str:
    """Return what the run took, and where it ran."""
    summary, environment = record.summary, record.environment
    facts: dict[str, str] = {}
    if record.rows:
        spent = sum(row.get("seconds", 0.0) for row in record.rows)
        facts["training"] = f"{duration(spent)} for {len(record.rows)} epochs, without tests and saving"
        facts["speed"] = f"{record.rows[-1].get('images_per_second', math.nan):,.0f} images a second"
        facts["waited for images"] = f"{record.rows[-1].get('share_waited', math.nan):.1%} of the time"
    if _is_number(summary.get("peak_memory")):
        facts["main memory"] = f"{size(summary['peak_memory'])} at most"
    if _is_number(summary.get("trainable_parameters")):
        facts["parameters"] = large(summary["trainable_parameters"])
    if _is_number(summary.get("macs")):
        facts["MACs an image"] = large(summary["macs"])
    backend, cores = environment.get("backend"), environment.get("cores")
    if backend:
        facts["backend"] = str(backend)
    if environment.get("accelerator") or environment.get("processor"):
        where = environment.get("accelerator") or f"{environment.get('processor')}, {cores} cores"
        facts["ran on"] = str(where)
    return _facts("cost", facts)


def settings(record: RunRecord) -> str:
    """Return the plan: all that was settled before the first step."""
    versions = record.environment.get("versions")
    packages = {str(name): str(value) for name, value in versions.items()} if isinstance(versions, dict) else {}
    plan = _facts("plan", {name: shown(value) for name, value in record.settings.items()})
    more = f"<details><summary>Versions</summary>\n{_facts('versions', packages)}</details>" if packages else ""
    return plan + more


def shown(value: Any) -> str:
    """Return a setting as a reader sees it."""
    if isinstance(value, str):
        return value or "–"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else json_text(value, indent=None).strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _say(sentence: str) -> str:
    return f'<p class="say">{sentence}</p>\n'


def _facts(caption: str, facts: dict[str, str]) -> str:
    """Return a table of names and texts of anybody's."""
    if not facts:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{breakable(name)}</th><td class="text">{literal(value)}</td></tr>\n'
        for name, value in facts.items()
    )
    return f'<div class="scroll"><table class="narrow" aria-label="{caption}"><tbody>\n{rows}</tbody></table></div>\n'


def _names(heading: str, every: Sequence[str]) -> str:
    more = len(every) - NAMES
    items = "".join(f"<li>{breakable(name)}</li>" for name in every[:NAMES])
    rest = f"<li>and {more:,} more</li>" if more > 0 else ""
    return f'<details><summary>{heading}</summary>\n<ul class="names">{items}{rest}</ul></details>'


def _photos(images: Iterable[Shown]) -> str:
    return f'<ul class="photos">{"".join(map(_photo, images))}</ul>\n'


def _photo(one: Shown) -> str:
    is_right = one.label == one.guess
    words = f"<b>{literal(one.guess)}</b> {one.confidence:.1%}"
    if not is_right:
        words += f", labelled {literal(one.label)} {one.own:.1%}"
    looked = f"where the network looked for {one.guess}"
    pictures = "" if one.picture is None else _image(one.picture.image, f"{one.label}: {one.name}", one.picture)
    pictures += _image(one.picture.heat, looked, one.picture) if one.picture is not None and one.picture.heat else ""
    alone = " one" if one.picture is None or not one.picture.heat else ""
    return f'<li><div class="two{alone}">{pictures}</div><p>{words}</p><p class="name">{breakable(one.name)}</p></li>\n'


def _double(one: Alike) -> str:
    images = "".join(
        _image(picture.image, name, picture)
        for picture, name in zip(one.pictures, one.names, strict=True)
        if picture is not None
    )
    labels = literal(one.labels[0])
    if one.labels[0] != one.labels[1]:
        labels = f"<b>{labels}</b> and <b>{literal(one.labels[1])}</b>"
    names = f"{breakable(one.names[0])} = {breakable(one.names[1])}"
    bits = "the same hash" if not one.distance else f"{one.distance} of 64 bits apart"
    return f'<li><div class="two">{images}</div><p>{labels}, {bits}</p><p class="name">{names}</p></li>\n'


def _image(address: str, text: str, picture: Picture) -> str:
    height, width = picture.size
    return f'<img src="{address}" alt="{literal(text)}" width="{width}" height="{height}" loading="lazy">'
