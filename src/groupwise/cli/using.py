"""`groupwise evaluate` and `groupwise predict`: what a trained network is good for."""

import difflib
import glob
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from groupwise.cli.backend import settle_backend
from groupwise.cli.options import Backend, Json, make_console, print_json
from groupwise.errors import UserError

if TYPE_CHECKING:
    from groupwise.models.network import Network
    from groupwise.training import Evaluation
    from groupwise.training.saved import Prediction

RunOrModel = Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or a .keras file.")]
PICTURE = ".cam.png"
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def evaluate(
    run_or_model: RunOrModel,
    data: Annotated[str, typer.Argument(help="As for `groupwise train`; its test images are looked at.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Look at all images of data that has no test images of its own.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of the test images set aside where data has none. Default: the run's.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    output: Annotated[
        Path | None, typer.Option(help="Where confusion.png goes. Default: the model's folder.", show_default=False)
    ] = None,
    json: Json = False,
    backend: Backend = None,
) -> None:
    """Test a trained network: top-1 and top-5 accuracy, a table by class, and confusion.png.

    Example: groupwise evaluate runs/digits-mnist_cnn digits
    """
    from groupwise.data import load_dataset
    from groupwise.training.recorded import divide_for

    dataset = load_dataset(data, seed=seed or 0, test_fraction=1 if everything else 0.2)
    dataset, notes = divide_for(dataset, run_or_model, as_given=everything or seed is not None)
    settle_backend(backend)
    from groupwise import report
    from groupwise.training import evaluate as test
    from groupwise.training import load_network
    from groupwise.training.plan import make_batches
    from groupwise.training.saved import match_classes, model_path

    network = load_network(run_or_model)
    class_names: list[str] = network.metadata["class_names"]
    split, note = match_classes(network, dataset)
    for said in (*dataset.notes, *notes, *([note] if note else [])):
        print(f"groupwise: {said}", file=sys.stderr)
    messages = make_console(stderr=True)
    batches = make_batches(split, network, batch_size)
    try:
        with messages.status(f"looking at {len(split):,} images"):
            evaluation = test(network, batches, batch_size)
    finally:
        batches.close()
    for name, reason in batches.broken:
        print(f"groupwise: skipped {name}: {reason}", file=sys.stderr)
    png = (output or model_path(run_or_model).parent) / "confusion.png"
    png.parent.mkdir(parents=True, exist_ok=True)
    report.confusion(evaluation.confusion, class_names, png)
    if json:
        print_json(_as_dict(evaluation, class_names, str(png), len(batches.broken)))
    else:
        _show(evaluation, class_names, png)


def predict(
    run_or_model: RunOrModel,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders or patterns.")],
    cam: Annotated[
        bool, typer.Option("--cam", help="Draw where the network looked (Grad-CAM), beside each image: NAME.cam.png.")
    ] = False,
    cam_class: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="With --cam: of which class. Default: the likeliest.", show_default=False),
    ] = None,
    json: Json = False,
    backend: Backend = None,
) -> None:
    """Say what images show: the five most likely classes of each, with their probabilities.

    Examples: groupwise predict runs/photos dog.jpg holiday/ "*.png"

    groupwise predict lite0.keras dog.jpg --cam
    """
    paths = image_paths(images)
    if cam_class is not None and not cam:
        raise UserError(f"--cam-class {cam_class}: belongs to --cam")
    settle_backend(backend)
    from groupwise.training import load_network, predict_images
    from groupwise.training.evaluation import most_likely

    network = load_network(run_or_model)
    class_names: list[str] = network.metadata["class_names"]
    explained = None if cam_class is None else _find_class(cam_class, class_names)
    pictures = _picture_paths(paths)
    broken: list[str] = []

    def on_broken(error: UserError) -> None:
        broken.append(str(error))
        if len(paths) > 1:
            print(f"groupwise: skipped {error}", file=sys.stderr)

    results: list[dict[str, Any]] = []
    for prediction in predict_images(network, paths, on_broken, cam, explained):
        top = most_likely(prediction.probabilities, class_names)
        result: dict[str, Any] = {
            "image": str(prediction.path),
            "top": [{"class": name, "probability": p} for name, p in top],
        }
        if cam:
            shown = int(prediction.probabilities.argmax()) if explained is None else explained
            _draw(network, prediction, class_names[shown], shown, pictures[prediction.path])
            result["cam"] = str(pictures[prediction.path])
        results.append(result)
    if not results:
        raise UserError(f"none of the {len(paths)} images could be read" if len(paths) > 1 else broken[0])
    if json:
        print_json(results)
        return
    table = Table("image", "class", box=None, header_style="bold")
    table.add_column("probability", justify="right")
    for result in results:
        for place, guess in enumerate(result["top"]):
            style = "bold" if place == 0 else "dim"
            image = result["image"] if place == 0 else ""
            table.add_row(image, f"[{style}]{guess['class']}[/]", f"[{style}]{guess['probability']:.1%}[/]")
    console = make_console()
    console.print(table)
    if cam:
        where = results[0]["cam"] if len(results) == 1 else f"beside each image, as NAME{PICTURE}"
        console.print(f"where it looked: {where}", highlight=False, markup=False, soft_wrap=True)


def _find_class(name: str, class_names: list[str]) -> int:
    """Return a class's place. Raises UserError, naming the nearest names, where there is none."""
    if name in class_names:
        return class_names.index(name)
    near = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the model has {len(class_names)} classes, none like it"
    raise UserError(f"--cam-class {name}: there is no such class; {hint}")


def _picture_paths(paths: list[Path]) -> dict[Path, Path]:
    """Return where each image's picture goes: dog.jpg's to dog.cam.png, or dog.jpg.cam.png beside a dog.png."""
    short = {path: path.with_name(f"{path.stem}{PICTURE}") for path in paths}
    count = Counter(short.values())
    return {path: name if count[name] == 1 else path.with_name(path.name + PICTURE) for path, name in short.items()}


def _draw(network: "Network", prediction: "Prediction", name: str, place: int, png: Path) -> None:
    """Draw where the network looked for a class."""
    from groupwise import report
    from groupwise.data import read_image
    from groupwise.training.saved import crop_box

    image = read_image(prediction.path)
    assert prediction.activation is not None
    caption = f"{name}, {prediction.probabilities[place]:.1%}"
    try:
        report.activation(image, prediction.activation, crop_box(network, image.shape[:2]), caption, png)
    except OSError as error:
        raise UserError(f"{png} cannot be written: {(error.strerror or str(error)).lower()}") from error


def image_paths(names: list[str]) -> list[Path]:
    """Return the files that names, folders and patterns mean, in their order.

    Raises:
        UserError: a folder or pattern holds no image, or a file does not exist.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(
                entry
                for entry in path.rglob("*")
                if entry.suffix.lower() in ENDINGS and not entry.name.endswith(PICTURE)
            )
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - of any root
        if not found:
            raise UserError(f"{name} holds no images" if path.is_dir() else f"{name} does not exist")
        paths.extend(found)
    return paths


def _as_dict(evaluation: "Evaluation", class_names: list[str], png: str, broken: int) -> dict[str, Any]:
    classes = [
        {"class": name, "images": images, "recall": _or_none(recall), "precision": _or_none(precision)}
        for name, (images, recall, precision) in zip(class_names, evaluation.per_class(), strict=True)
    ]
    return {
        "images": evaluation.count,
        "broken": broken,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "loss": evaluation.loss,
        "classes": classes,
        "confusion": evaluation.confusion.tolist(),
        "confusion_png": png,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _show(evaluation: "Evaluation", class_names: list[str], png: Path) -> None:
    table = Table("class", box=None, header_style="bold")
    for column in ("images", "recall", "precision"):
        table.add_column(column, justify="right")
    for name, (images, recall, precision) in zip(class_names, evaluation.per_class(), strict=True):
        shares = ["" if math.isnan(value) else f"{value:.1%}" for value in (recall, precision)]
        table.add_row(name, f"{images:,}", *shares)
    console = make_console()
    console.print(table)
    console.print(
        f"top-1 {evaluation.top1:.2%}, top-5 {evaluation.top5:.2%}, loss {evaluation.loss:.4f} "
        f"on {evaluation.count:,} images; confusion matrix in {png}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
