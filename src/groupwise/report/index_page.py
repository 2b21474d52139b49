"""Several runs side by side: their curves in one chart, their results, and the settings in which they differ."""

import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from groupwise.report.charts import Series, lines
from groupwise.report.html_page import breakable, literal, table
from groupwise.report.looking import Look
from groupwise.report.run_page import Section, page
from groupwise.report.runs import RunRecord
from groupwise.report.sections import percent, shown
from groupwise.report.tables import Cell, duration, large, size, sortable

STYLES = 8
"""The colours that the style has for lines."""


def index_page(names: Sequence[str], records: Sequence[RunRecord], seen: Sequence[Look | None], source: str) -> str:
    """Return the page, as HTML.

    Args:
        names: of the runs, which are those of their pages without `.html`.
        records: of the runs.
        seen: what each network makes of its images to test on; None where nobody looked.
        source: how the page was made.
    """
    parts = [
        Section("results", "Results", _results(names, records, seen)),
        Section("curves", "Curves", _curves(names, records)),
        Section("settings", "Settings that differ", _settings(names, records)),
    ]
    models = sorted({str(record.recipe.get("model", "")) for record in records})
    sets = sorted({str(record.plan.get("dataset", "")) for record in records})
    about = literal(f"{', '.join(models)} on {', '.join(sets)}")
    top = f'<header><h1>{len(records)} runs</h1>\n<p class="sub">{about}</p></header>'
    return page(f"{len(records)} runs", top, parts, source)


def _results(names: Sequence[str], records: Sequence[RunRecord], seen: Sequence[Look | None]) -> str:
    """Return a row for each run, the best one first; what a run's folder does not say is a dash."""
    rows = []
    for place, (name, record, each) in enumerate(zip(names, records, seen, strict=True)):
        summary = record.summary
        accuracy = each.evaluation.top1 if each is not None else _number(summary, "test_accuracy")
        loss = each.evaluation.loss if each is not None else _number(summary, "test_loss")
        error = each.calibration.error if each is not None and each.calibration is not None else math.nan
        spent = sum(row.get("seconds", 0.0) for row in record.rows)
        mark = f'<i class="key s{place % STYLES}"></i>'
        link = f'{mark}<a href="{quote(name)}.html">{literal(name)}</a>'
        rows.append(
            [
                Cell(literal(name), link),
                _cell(accuracy, "{:.2%}".format),
                _cell(loss, "{:.4f}".format),
                _cell(error, "{:.2%}".format),
                Cell(len(record.rows), str(len(record.rows))),
                _cell(spent, duration),
                _cell(
                    record.rows[-1].get("images_per_second", math.nan) if record.rows else math.nan, "{:,.0f}".format
                ),
                _cell(_number(summary, "peak_memory"), size),
                _cell(_number(summary, "trainable_parameters"), large),
                _cell(_number(summary, "macs"), large),
            ]
        )
    head = ("run", "test accuracy", "loss", "calibration error", "epochs", "training", "images/s", "memory")
    rows.sort(key=lambda row: float(row[1].value), reverse=True)
    return sortable("results", (*head, "parameters", "MACs"), rows, by=1, falls=True)


def _number(content: Any, name: str) -> float:
    value = content.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _cell(value: float, written: Any) -> Cell:
    return Cell(-1, "–") if math.isnan(value) else Cell(value, written(value))


def _curves(names: Sequence[str], records: Sequence[RunRecord]) -> str:
    """Return the accuracy and the loss by epoch: of the images that judged, and of those trained on."""
    charts = []
    for column, written in (("accuracy", percent), ("loss", "{:.3g}".format)):
        for images in (_judges(records), "training"):
            series = [
                Series(
                    name, [row["epoch"] for row in record.rows], _values(record, column, images), f"s{place % STYLES}"
                )
                for place, (name, record) in enumerate(zip(names, records, strict=True))
            ]
            charts.append(lines(f"{images.capitalize()} {column}", series, written))
    return f'<div class="charts">\n{"".join(charts)}</div>' if any(charts) else ""


def _judges(records: Sequence[RunRecord]) -> str:
    """Return which images runs were tested on after each epoch, in words."""
    return " or ".join(sorted({record.judge for record in records}))


def _values(record: RunRecord, column: str, images: str) -> list[float]:
    name = column if images == "training" else f"{record.judge}_{column}"
    return [row.get(name, math.nan) for row in record.rows]


def _settings(names: Sequence[str], records: Sequence[RunRecord]) -> str:
    """Return a row for each setting in which runs differ."""
    every = [{**record.settings, "backend": record.environment.get("backend")} for record in records]
    keys = dict.fromkeys(key for settings in every for key in settings)
    differing = [key for key in keys if any(settings.get(key) != every[0].get(key) for settings in every)]
    if not differing:
        return '<p class="say">All settings are the same.</p>'
    rows = [(breakable(key), *(literal(shown(settings.get(key))) for settings in every)) for key in differing]
    return table("settings that differ", ("setting", *map(literal, names)), rows)
