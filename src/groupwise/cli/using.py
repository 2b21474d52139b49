"""`groupwise evaluate` and `groupwise predict`: what a trained network is good for."""

import csv
import io
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import Listing, Styled, make_console, note, print_json, say
from groupwise.cli.options import SEEDS, Backend, BatchSize, Json, left_open, option
from groupwise.cli.outputs import output_folder
from groupwise.data.files import CAM_SUFFIX
from groupwise.data.image_paths import image_paths, listed_names
from groupwise.errors import UserError
from groupwise.writing import check_file, check_folder, expanded, make_folder, replace_file

if TYPE_CHECKING:
    from groupwise.inference import Evaluation
    from groupwise.inference.guesses import Classes
    from groupwise.inference.prediction import Prediction
    from groupwise.models.network import Network, RewrittenNetwork

STANDARD = "-"
"""Stands for standard input or output where a file's name is asked for."""

RunOrModel = Annotated[
    str, typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or a model's file (.keras or .h5).")
]


def evaluate(
    run_or_model: RunOrModel,
    data: Annotated[str, typer.Argument(help="As for `groupwise train`; its test images are looked at.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Look at all images of data that has no test images of its own.")
    ] = False,
    seed: Annotated[
        int | None,
        left_open("Of the test images set aside where data has none. Default: the run's.", min=0, max=SEEDS),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option("--mirror", help="Average each image's logits with those of its mirror image, in twice the time."),
    ] = False,
    batch_size: BatchSize = 64,
    output: Annotated[
        str | None,
        left_open("Where evaluation.html and confusion.png go. Default: the model's folder.", metavar="FOLDER"),
    ] = None,
    json: Json = False,
    backend: Backend = None,
) -> None:
    """Test a trained network: top-1 and top-5 accuracy, a table by class; evaluation.html and confusion.png.

    Example: groupwise evaluate runs/digits-mnist_cnn digits
    """
    from groupwise.data import load_dataset
    from groupwise.inference.recorded import divide_for

    given = None if output is None else output_folder(output)
    dataset = load_dataset(data, seed=seed or 0, test_fraction=1 if everything else 0.2)
    dataset, notes = divide_for(dataset, run_or_model, as_given=everything or seed is not None)
    settle_backend(backend)
    from groupwise import report
    from groupwise.inference import evaluate as test
    from groupwise.inference import load_network
    from groupwise.inference.matching import match_classes
    from groupwise.inference.networks import model_path
    from groupwise.inference.preprocessing import make_batches

    network = load_network(run_or_model)
    class_names: list[str] = network.metadata["class_names"]
    png = (given or model_path(run_or_model).parent) / "confusion.png"
    page = png.with_name("evaluation.html")
    check_folder(png.parent, option("output", png.parent))
    split, guess = match_classes(network, dataset)
    for text in (*dataset.notes, *notes, *([guess] if guess else [])):
        note(text)
    messages = make_console(stderr=True)
    batches = make_batches(split, network, batch_size)
    try:
        with messages.status(f"looking at {len(split):,} images"):
            evaluation = test(network, batches, folds=True, mirrors=mirror)
    finally:
        batches.close()
    for name, reason in batches.broken:
        note(f"skipped {name}: {reason}")
    make_folder(png.parent)
    report.confusion(evaluation.confusion, class_names, png)
    with messages.status("writing the page"):
        seen = report.look(network, split, evaluation)
        report.write_page(page, f"{model_path(run_or_model)} on {dataset.name}", None, seen)
    if json:
        images, *others = evaluation.as_dict(class_names).items()
        print_json(
            dict([images, ("broken", len(batches.broken)), *others, ("confusion_png", str(png)), ("page", str(page))])
        )
    else:
        _show(evaluation, class_names, page)


def predict(
    run_or_model: RunOrModel,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", help="Image files, folders or patterns.")
    ] = None,
    names_from: Annotated[
        str | None,
        left_open(
            "A file of further names, one a line or with a NUL after each; - is standard input.",
            "--from",
            metavar="FILE",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into the folders below a folder, too.")
    ] = False,
    cam: Annotated[
        bool, typer.Option("--cam", help="Draw where the network looked (Grad-CAM), beside each image: NAME.cam.png.")
    ] = False,
    cam_class: Annotated[
        str | None, left_open("With --cam: of which class. Default: the likeliest.", metavar="CLASS")
    ] = None,
    table: Annotated[
        str | None,
        left_open(
            "Write a row for each class named: image, rank, index, class, WordNet id (ImageNet's), probability; "
            "- is standard output.",
            "--csv",
            metavar="FILE",
        ),
    ] = None,
    json: Json = False,
    backend: Backend = None,
) -> None:
    """Say what images show: the five most likely classes of each, with their probabilities.

    Of a folder, every image that `groupwise train` reads is taken, in the order of their names.

    Examples: groupwise predict runs/photos dog.jpg holiday/ "*.png"

    groupwise predict lite0.keras dog.jpg --cam

    find . -name "*.jpg" | groupwise predict runs/photos --from - --csv guesses.csv
    """
    paths = image_paths([*(images or []), *_names_from(names_from)], recursive, on_note=note)
    if not paths:
        raise UserError("no image is named: name files, folders or patterns, or a file of names with --from")
    if cam_class is not None and not cam:
        raise UserError(f"--cam-class {cam_class}: belongs to --cam")
    if table == STANDARD and json:
        raise UserError("--csv -: is printed where --json prints; name a file, or leave one of them out")
    if table not in (None, STANDARD):
        check_file(expanded(table), f"--csv {table}")
    pictures = _picture_paths(paths) if cam else {}
    settle_backend(backend)
    from groupwise.inference import load_network
    from groupwise.inference.guesses import Classes
    from groupwise.inference.matching import place_of

    network = load_network(run_or_model)
    classes = Classes.of(network.metadata["class_names"])
    explained = None if cam_class is None else place_of(cam_class, classes.names, classes.ids)
    results = _results(network, classes, paths, pictures, explained)
    if table is not None:
        _write_table(results, table)
    if json:
        print_json(results)
    if json or table == STANDARD:
        return
    console = make_console()
    if table is None:
        console.print(_table(results, classes.labels))
    else:
        say(console, f"{len(results):,} image{'s' if len(results) > 1 else ''} in {table}")
    if cam:
        where = results[0]["cam"] if len(results) == 1 else f"beside each image, as NAME{CAM_SUFFIX}"
        say(console, f"where it looked: {where}")


def _names_from(file: str | None) -> list[str]:
    """Return the names that a file, or standard input, holds. Raises UserError where it cannot be read or has none."""
    if file is None:
        return []
    try:
        if file != STANDARD:
            content = expanded(file).read_bytes()
        else:
            content = sys.stdin.buffer.read() if sys.stdin is not None else b""
    except OSError as error:
        raise UserError(f"--from {file}: {(error.strerror or str(error)).lower()}") from error
    names = listed_names(content)
    if not names:
        raise UserError(f"--from {file}: holds no names; write the name of an image on each line")
    return names


def _results(
    network: "Network | RewrittenNetwork",
    classes: "Classes",
    paths: list[Path],
    pictures: dict[Path, Path],
    explained: int | None,
) -> list[dict[str, Any]]:
    """Return what a network says of each image that can be read, as data for JSON; draw the pictures that are named.

    Args:
        network: with class names.
        classes: these.
        paths: of the images.
        pictures: where each image's picture goes; nothing, for none.
        explained: the class of which they are; None for each image's likeliest.

    Raises:
        UserError: no image can be read.
    """
    from groupwise.inference import predict_images

    broken: list[str] = []

    def on_broken(error: UserError) -> None:
        broken.append(str(error))
        if len(paths) > 1:
            note(f"skipped {error}")

    results: list[dict[str, Any]] = []
    for prediction in predict_images(network, paths, on_broken, bool(pictures), explained):
        guesses = classes.guesses(prediction.probabilities)
        result: dict[str, Any] = {"image": str(prediction.path), "top": guesses}
        if pictures:
            shown = int(prediction.probabilities.argmax()) if explained is None else explained
            _draw(network, prediction, classes.labels[shown], shown, pictures[prediction.path])
            result["cam"] = str(pictures[prediction.path])
        results.append(result)
    if not results:
        raise UserError(f"none of the {len(paths)} images could be read" if len(paths) > 1 else broken[0])
    return results


def _table(results: list[dict[str, Any]], labels: Sequence[str]) -> Listing:
    """Return a row for each guess, below its image."""
    table = Listing("image", "class")
    table.add_column("probability", justify="right")
    for result in results:
        for place, guess in enumerate(result["top"]):
            style = "bold" if place == 0 else "dim"
            image = result["image"] if place == 0 else ""
            table.add_row(image, Styled(labels[guess["index"]], style), Styled(f"{guess['probability']:.1%}", style))
    return table


def _write_table(results: list[dict[str, Any]], file: str) -> None:
    """Write what was said of images as CSV, to a file or to standard output.

    The names of files are there as they are, whatever their encoding.
    """
    from groupwise.inference.guesses import rows

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows(results))
    if file != STANDARD:
        content = text.getvalue().encode("utf-8", "surrogateescape")
        replace_file(expanded(file), lambda partial: partial.write_bytes(content))
    elif sys.stdout is not None:
        sys.stdout.write(text.getvalue())


def _picture_paths(paths: list[Path]) -> dict[Path, Path]:
    """Return where each image's picture goes: dog.jpg's to dog.cam.png, or dog.jpg.cam.png beside a dog.png.

    Raises:
        UserError: one cannot be written, or is itself an image to look at.
    """
    short = {path: path.with_name(f"{path.stem}{CAM_SUFFIX}") for path in paths}
    count = Counter(short.values())
    pictures = {
        path: name if count[name] == 1 else path.with_name(path.name + CAM_SUFFIX) for path, name in short.items()
    }
    for picture in pictures.values():
        if picture in pictures:
            raise UserError(f"--cam: {picture} would be drawn over, and is one of the images; leave it out")
        check_file(picture, option("cam", picture))
    return pictures


def _draw(network: "Network | RewrittenNetwork", prediction: "Prediction", name: str, place: int, png: Path) -> None:
    """Draw where the network looked for a class."""
    from groupwise import report
    from groupwise.data import read_image
    from groupwise.inference.preprocessing import preprocessing_of

    image = read_image(prediction.path)
    assert prediction.heat_map is not None
    caption = f"{name}, {prediction.probabilities[place]:.1%}"
    height, width, _ = network.architecture["input_shape"]
    box = preprocessing_of(network).crop_box(image.shape[:2], (height, width))
    report.heat_map(image, prediction.heat_map, box, caption, png)


def _show(evaluation: "Evaluation", class_names: list[str], page: Path) -> None:
    table = Listing("class")
    for column in ("images", "recall", "precision"):
        table.add_column(column, justify="right")
    for name, (images, recall, precision) in zip(class_names, evaluation.per_class(), strict=True):
        shares = ["" if math.isnan(value) else f"{value:.1%}" for value in (recall, precision)]
        table.add_row(name, f"{images:,}", *shares)
    console = make_console()
    console.print(table)
    say(
        console,
        f"top-1 {evaluation.top1:.2%}, top-5 {evaluation.top5:.2%}, loss {evaluation.loss:.4f} "
        f"on {evaluation.count:,} images; more in {page}",
    )
