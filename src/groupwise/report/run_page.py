"""The page of a run, or of a network on other data: all that is known, in one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from groupwise.report import sections
from groupwise.report.html_page import framed, literal
from groupwise.report.looking import Look
from groupwise.report.runs import RunRecord
from groupwise.report.tables import duration

_FOLDER = Path(__file__).parent
STYLE = (
    # Whatever stands in a page, nothing of it is fetched.
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:\">\n"
    f"<style>\n{(_FOLDER / 'run.css').read_text(encoding='utf-8')}</style>\n"
)
SCRIPT = f"<script>\n{(_FOLDER / 'run.js').read_text(encoding='utf-8')}</script>\n"


class Section(NamedTuple):
    """A part of a page: its anchor, its heading, and its HTML."""

    anchor: str
    heading: str
    body: str


def run_page(title: str, record: RunRecord | None, seen: Look | None, source: str, lacks: Sequence[str] = ()) -> str:
    """Return the page of a run, as HTML.

    Args:
        title: what it is about.
        record: of the run; None where a network alone is looked at.
        seen: what the network makes of the images to test on; None where nobody looked.
        source: how the page was made.
        lacks: sentences on what is not there.
    """
    parts = [] if record is None else [Section("curves", "Curves", sections.curves(record))]
    if seen is not None:
        parts += [
            Section("classes", "Classes", sections.classes(seen)),
            Section("confusion", "Confusion", sections.confusion(seen)),
            Section("mistakes", "Most confident mistakes", sections.mistakes(seen)),
            Section("doubtful", "Least certain hits", sections.doubtful(seen)),
            Section("labels", "Likely wrong labels", sections.suspects(seen)),
            Section("doubles", "Doubles", sections.doubles(seen)),
            Section("calibration", "Calibration", sections.calibration(seen)),
        ]
    if record is not None:
        parts += [
            Section("cost", "Cost", sections.cost(record)),
            Section("plan", "Plan", sections.settings(record)),
        ]
    missing = [*([] if record is None else record.lacks), *lacks]
    missing += [seen.lacks["images"]] if seen is not None and "images" in seen.lacks else []
    top = f"<header><h1>{literal(title)}</h1>\n{_subtitle(record)}</header>\n{_tiles(record, seen)}\n{_lacks(missing)}"
    return page(title, top, parts, source)


def page(title: str, top: str, parts: Sequence[Section], source: str) -> str:
    """Return a page of sections, with links to them, as HTML; those without content are left out."""
    shown = [part for part in parts if part.body]
    links = "".join(f'<a href="#{part.anchor}">{part.heading}</a>' for part in shown)
    body = "\n".join(
        f'<section id="{part.anchor}">\n<h2>{part.heading}</h2>\n{part.body}\n</section>' for part in shown
    )
    return framed(
        literal(title), f'{top}\n<nav aria-label="sections">{links}</nav>\n{body}', literal(source), STYLE, SCRIPT
    )


def tiles(facts: dict[str, str]) -> str:
    """Return the numbers that come first, by their names."""
    each = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="tiles">{each}</dl>' if each else ""


def _subtitle(record: RunRecord | None) -> str:
    if record is None:
        return ""
    recipe, dataset = record.recipe, record.plan.get("dataset", "")
    epochs = len(record.rows)
    parts = [f"{recipe.get('model', '')} on {dataset}", f"recipe {recipe.get('name', '')}"]
    parts += [f"{epochs} epoch{'s' * (epochs != 1)}"] if epochs else []
    parts += [str(record.environment["backend"])] if record.environment.get("backend") else []
    return f'<p class="sub">{literal(" · ".join(parts))}</p>\n'


def _tiles(record: RunRecord | None, seen: Look | None) -> str:
    facts: dict[str, str] = {}
    if seen is not None:
        evaluation = seen.evaluation
        facts["test accuracy"] = f"{evaluation.top1:.2%}"
        if len(seen.class_names) > 5:
            facts["top 5"] = f"{evaluation.top5:.2%}"
        facts["loss"] = f"{evaluation.loss:.4f}"
        facts["images"] = f"{evaluation.count:,}"
        if seen.calibration is not None:
            facts["calibration error"] = f"{seen.calibration.error:.2%}"
    elif record is not None and isinstance(record.summary.get("test_accuracy"), float):
        facts["test accuracy"] = f"{record.summary['test_accuracy']:.2%}"
        facts["loss"] = f"{record.summary.get('test_loss') or float('nan'):.4f}"
        facts["images"] = f"{record.summary.get('test_images') or 0:,}"
    if record is not None and record.rows:
        facts["training"] = duration(sum(row.get("seconds", 0.0) for row in record.rows))
    return tiles(facts)


def _lacks(sentences: Sequence[str]) -> str:
    each = "".join(f"<p>{literal(sentence)}</p>" for sentence in sentences)
    return f'<div class="lacks">{each}</div>' if each else ""
