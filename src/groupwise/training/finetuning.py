"""A few more epochs of a network that was rewritten."""

import keras

from groupwise.data import Augmentation, Dataset, Variation
from groupwise.data.record import record_of
from groupwise.errors import UserError
from groupwise.inference.matching import with_classes
from groupwise.inference.preprocessing import make_batches
from groupwise.inference.recorded import SPLIT, record_in
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.training.diverging import Watch
from groupwise.training.stopped import Diverged, StopTraining

MOMENTUM = 0.9


def finetune(
    network: Network | RewrittenNetwork, dataset: Dataset, epochs: int, learning_rate: float, batch_size: int
) -> None:
    """Train a network, in place, on a data set's training images: SGD with momentum, the rate falling to zero.

    Args:
        network: with preprocessing and class names; the data's classes are its own. Its metadata get the record of what
            it is trained on.
        epochs: passes over the training images. learning_rate: the first one. batch_size: images a step.

    Raises:
        UserError: the data's classes are not the network's, there is nothing to train on, or images are broken.
        Diverged: a loss or a weight is not finite; the network is of no use then.
    """
    dataset = with_classes(dataset, network.metadata["class_names"])
    if not len(dataset.train):
        raise UserError(f"{dataset.name} has no images to train {network.name} on")
    network.metadata[SPLIT] = record_of(dataset, record_in(network.metadata, network.name)).as_dict()
    batches = make_batches(dataset.train, network, batch_size, Variation(Augmentation(), shuffle=True))
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(batches))
    network.compile(
        keras.optimizers.SGD(schedule, momentum=MOMENTUM, nesterov=True),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    try:
        network.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[Watch()])
    except StopTraining as reason:
        raise Diverged(reason, "nothing was written", learning_rate) from None
    finally:
        batches.close()
