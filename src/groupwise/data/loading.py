"""load_dataset: from what the user names to a data set."""

from pathlib import Path

from groupwise.data.arrays import dataset_of_idx, dataset_of_npz, digits, find_idx_files
from groupwise.data.cifar import dataset_of_cifar_archive, dataset_of_cifar_folder, is_cifar_archive, is_cifar_folder
from groupwise.data.dataset import Dataset, SplitRule
from groupwise.data.files import files_in_folder, files_in_zip, with_utf8_names
from groupwise.data.folders import dataset_of_files
from groupwise.data.listed import dataset_of_list, is_list
from groupwise.data.published import find_published
from groupwise.data.shard_cache import is_shard
from groupwise.data.sources import addresses_of, dataset_of_sources, is_pattern, shards_in
from groupwise.errors import UserError
from groupwise.texts import did_you_mean, nearest
from groupwise.writing import expanded

TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar")
SUPPORTED = (
    "digits, a folder of class folders, a .zip of one, CIFAR's folder or .tar.gz, an .npz, a .csv or .jsonl of paths "
    "and labels, .tar, .parquet or .tfrecord shards, a folder with the files of MNIST, SVHN, Food-101, Oxford's "
    "flowers or ImageNet"
)


def load_dataset(source: str | Path, *, seed: int = 0, test_fraction: float = 0.2) -> Dataset:
    """Open a data set; images are read later, when they are asked for.

    Sources: "digits" (1,797 handwritten digits, which come with the package); a folder of class folders, or with train/
    and test/ or val/ that hold them; a .zip of either, read in place; CIFAR-10's or CIFAR-100's Python folder
    or .tar.gz; a folder with MNIST's idx files, gzipped or not; an .npz with x_train, y_train, x_test,
    y_test, or x, y, or images, labels; a .csv, .tsv or .jsonl of paths and labels, and perhaps splits, the columns by
    their names; the folders of SVHN's .mat files, of Food-101, of Oxford's 102 flowers and of ImageNet (the tar files,
    or class folders by WordNet id, and the validation images with their ground truth); shards, WebDataset's tar files,
    Parquet files of the Hugging Face layout or TFRecord files: a folder of them, a pattern such as
    "train-{000..127}.tar", or an address that fsspec knows.

    Args:
        source: "digits" or a path. (A folder of that name is "./digits".)
        seed: settles the images of the test split that is made where the source has none. What an image is, its class
            and name or its pixels, decides its side: adding images never moves others.
        test_fraction: about the share of each class in such a split, in (0, 1]; with 1 everything is tested on.

    Returns:
        The data set. With train/ and val/ but no test/, val/ is what is tested on.

    Raises:
        UserError: the path does not exist, is empty, has one class, has class folders that differ between its
            splits or may be splits themselves, climbs out of its archive, or is of no known kind.
        ValueError: test_fraction is out of range.

    Examples:
        >>> dataset = load_dataset("digits")
        >>> len(dataset.train), len(dataset.test), dataset.image_size, dataset.channels
        (1461, 336, (8, 8), 1)
    """
    rule = SplitRule(seed, test_fraction)
    if str(source) == "digits":
        return digits(rule)
    if is_pattern(str(source)):
        return dataset_of_sources(str(source), addresses_of(str(source)), rule)
    path = expanded(source)
    try:
        return _load_path(path, rule)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _load_path(path: Path, rule: SplitRule) -> Dataset:
    if not path.exists():
        raise UserError(f"{path} does not exist{_nearest(path) or f': name one of {SUPPORTED}'}")
    name = path.name.lower()
    if path.is_dir():
        return _load_folder(path, rule)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: it has no bytes")
    if name.endswith(".zip"):
        return dataset_of_files(path.name, files_in_zip(path), rule)
    if is_shard(name) and not (name.endswith(".tar") and is_cifar_archive(path)):
        return dataset_of_sources(str(path), [str(path)], rule)
    if name.endswith(TAR_SUFFIXES):
        return dataset_of_cifar_archive(path)
    if name.endswith(".npz"):
        return dataset_of_npz(path, rule)
    if is_list(path):
        return dataset_of_list(path, rule)
    raise UserError(f"{path} is of no kind that can be read; these are: {SUPPORTED}")


def _load_folder(path: Path, rule: SplitRule) -> Dataset:
    for folder in (path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
        if is_cifar_folder(folder):
            return dataset_of_cifar_folder(folder)
        load = find_published(folder.resolve())
        if load is not None:
            return load(folder.resolve(), rule)
    shards = shards_in(path)
    if shards:
        return dataset_of_sources(str(path), shards, rule)
    idx_files = find_idx_files(path)
    if idx_files:
        return dataset_of_idx(path, idx_files, rule)
    return dataset_of_files(path.resolve().name, with_utf8_names(files_in_folder(path)), rule)


def _nearest(path: Path) -> str:
    """Return a hint at what may have been meant: the most similar name beside it."""
    try:
        siblings = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f": nor does {path.parent}" if not path.parent.exists() else ""
    names = siblings if path.parent != Path() else [*siblings, "digits"]
    question = did_you_mean(path.parent / name for name in nearest(path.name, names))
    return question and f"; {question}"
