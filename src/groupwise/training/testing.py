"""Further data that the best model is tested on, once, when a training has ended."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from groupwise.data import Dataset, Split, load_dataset
from groupwise.data.record import SplitRecord, trained_in
from groupwise.data.samples import TooManyBroken
from groupwise.errors import UserError, argument
from groupwise.inference import load_network
from groupwise.inference.evaluation import Evaluation, merged
from groupwise.inference.matching import among_classes
from groupwise.inference.preprocessing import make_batches
from groupwise.training.session import Session
from groupwise.training.summary import FurtherTest

Broken: TypeAlias = list[tuple[str, str]]
"""The (name, reason) of images that cannot be read."""


def load_tests(named: Mapping[str, str]) -> dict[str, Dataset]:
    """Open further data to test on, by their names. Raises UserError, with its name, where one cannot be read."""
    opened = {}
    for name, data in named.items():
        try:
            opened[name] = load_dataset(data, test_fraction=1)
        except UserError as error:
            raise UserError(f"{argument('tests', name)}: {error}") from error
    return opened


def settle_tests(
    tests: Mapping[str, Dataset], class_names: Sequence[str], train: Split, record: SplitRecord
) -> tuple[dict[str, list[Split]], list[str]]:
    """Return all images of further data that are not trained on, and sentences on them.

    Args:
        tests: the data by their names.
        class_names: of the network; the data may have fewer.
        train: what is trained on.
        record: of it.

    Raises:
        UserError: one has classes that the network does not know, or no image that is not trained on.
    """
    settled, notes = {}, []
    for name, dataset in tests.items():
        try:
            matched, note = among_classes(dataset, class_names)
        except UserError as error:
            raise UserError(f"{argument('tests', name)}: {error}") from None
        splits = list(matched.splits.values())
        settled[name] = [split.take(np.flatnonzero(~trained_in(split, train, record))) for split in splits]
        every, count = (sum(map(len, some)) for some in (splits, settled[name]))
        if not count:
            raise UserError(f"{argument('tests', name)}: all of its {every:,} images are trained on")
        without = f", without the {every - count:,} that are trained on" if count < every else ""
        texts = [*dataset.notes, *([note] if note else []), f"{count:,} images to test the best model on{without}"]
        notes += [f"{name}: {text}" for text in texts]
    return settled, notes


def evaluate_further(session: Session) -> tuple[dict[str, FurtherTest], Broken]:
    """Return what the best model makes of further data, by their names, and which images are broken.

    The network is the best one from then on; where best.keras could never be written, it stays the last one.

    Raises:
        UserError: the model cannot be read, or too many of the images cannot.
    """
    run = session.run
    if not run.tests:
        return {}, []
    run.distribution.gather(None)  # until process 0 has written it
    if session.kept_epoch:
        with run.distribution.apart():
            weights = load_network(run.folder.best).get_weights()
        session.network.set_weights(weights)
    found, broken = {}, Broken()
    for name, splits in run.tests.items():
        try:
            evaluation, names = evaluate_splits(session, splits)
        except TooManyBroken as error:
            raise UserError(f"{argument('tests', name)}: {error}") from error
        found[name] = FurtherTest(evaluation.top1, evaluation.top5, evaluation.loss, evaluation.count)
        broken += [(f"{name}: {image}", reason) for image, reason in names]
    return found, broken


def evaluate_splits(session: Session, splits: Sequence[Split]) -> tuple[Evaluation, Broken]:
    """Return the evaluation of the network on all images of some splits, by all processes, and which are broken."""
    run, parts, broken = session.run, [], Broken()
    for split in filter(len, splits):
        part = run.distribution.index, run.distribution.count
        batches = make_batches(split, session.network, run.plan.recipe.batch_size, part=part)
        try:
            parts.append(run.distribution.evaluate(session.network, batches))
        finally:
            batches.close()
        broken += batches.broken
    return merged(parts), broken
