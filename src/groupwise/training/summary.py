"""What came out of a training."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FurtherTest:
    """What the best model makes of further data.

    Attributes:
        accuracy, top5, loss: of it.
        images: how many were tested on.
    """

    accuracy: float
    top5: float
    loss: float
    images: int


@dataclass(frozen=True)
class RunSummary:
    """What came out of a training, as summary.json has it.

    Attributes:
        test_accuracy, test_top5, test_loss: of the last model (with averaged weights where the recipe averages).
        test_images: how many images were tested on.
        best_epoch, best_accuracy: of best.keras, which the images of the split `judged_by` chose: of these images the
            accuracy, which is higher than that of new ones may be.
        judged_by: "validation" where the data has such a split or the recipe sets one aside; else "test", and
            `best_accuracy` is no test accuracy.
        epochs: finished, in all.
        training_seconds: of all epochs' steps, without tests and saving.
        images_per_second: the last epoch's.
        share_waited: the last epoch's share of time in which there was no input.
        trainable_parameters, macs: of the network; MACs for one image.
        broken_images: the (name, reason) of every image that was skipped; of further data theirs comes before it.
        ended_by_patience: whether the images `judged_by` ended the training before its last epoch.
        peak_memory: the most bytes of main memory that one of the processes held at once; None where the system does
            not tell.
        tests: what best.keras makes of further data to test on, by the data's names.
    """

    test_accuracy: float
    test_top5: float
    test_loss: float
    test_images: int
    best_epoch: int
    best_accuracy: float
    judged_by: str
    epochs: int
    training_seconds: float
    images_per_second: float
    share_waited: float
    trainable_parameters: int
    macs: int
    broken_images: list[tuple[str, str]]
    ended_by_patience: bool = False
    peak_memory: int | None = None
    tests: Mapping[str, FurtherTest] = field(default_factory=dict)
