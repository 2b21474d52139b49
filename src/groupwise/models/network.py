"""A functional Keras model that remembers how it was made."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from groupwise import keras_private
from groupwise.errors import UserError
from groupwise.models.steps import run_recorded
from groupwise.running.run import run_fused


@keras.saving.register_keras_serializable("groupwise")
class Network(keras.Model):
    """A network of this package: an ordinary functional model, saved as the call that makes it.

    Attributes:
        architecture: the arguments of `groupwise.models.create` that rebuild it, as data for JSON.
        metadata: what travels with the weights, as data for JSON: "preprocessing", "class_names" and the like.
    """

    def __init__(self, inputs: Any, outputs: Any, architecture: dict[str, Any], metadata: dict[str, Any]) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=architecture["name"])
        # Keras would track plain containers as part of the model's state.
        object.__setattr__(self, "architecture", dict(architecture))
        object.__setattr__(self, "metadata", dict(metadata))
        run_fused(self)
        run_recorded(self)

    architecture: dict[str, Any]
    metadata: dict[str, Any]

    def get_config(self) -> dict[str, Any]:
        """Return the architecture and the metadata."""
        return {"architecture": self.architecture, "metadata": self.metadata}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Network":
        """Rebuild the network, with fresh weights, from `get_config`'s data.

        Raises:
            UserError: the data are no arguments of `create`, or ask for weights from elsewhere.
        """
        from groupwise.models import create

        architecture, metadata = config.get("architecture"), _checked_metadata(config)
        if not isinstance(architecture, dict) or not isinstance(architecture.get("name"), str):
            raise UserError(f"architecture={architecture!r}: must be the arguments of groupwise.models.create")
        for name, value in architecture.items():
            if name == "weights" or not _is_plain(value):
                raise UserError(
                    f"architecture: {name}={value!r} is refused; a saved network has its own weights and plain values"
                )
        try:
            network = create(**architecture)
        except UserError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"architecture={architecture!r}: {error}") from error
        network.metadata.update(metadata)
        return network


@keras.saving.register_keras_serializable("groupwise")
class RewrittenNetwork(keras.Model):
    """A network that `groupwise.rewrite` made of one of ours: any layers, saved as they are, with the same metadata.

    Attributes:
        architecture: its name, classes and image size, as data for JSON; not enough to rebuild it.
        metadata: as a `Network`'s.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "metadata", {})
        run_fused(self)
        run_recorded(self)

    metadata: dict[str, Any]

    @property
    def architecture(self) -> dict[str, Any]:
        classes = self.output_shape[-1] if isinstance(self.output_shape, tuple) else None
        return {"name": self.name, "num_classes": classes, "input_shape": list(self.input_shape[1:])}

    def get_config(self) -> dict[str, Any]:
        """Return the layers, how they are called, and the metadata."""
        return {**super().get_config(), "metadata": self.metadata}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "RewrittenNetwork":
        """Rebuild the network, with fresh weights, from `get_config`'s data."""
        graph = {name: value for name, value in config.items() if name != "metadata"}
        metadata = _checked_metadata(config)
        network: RewrittenNetwork = super().from_config(graph, custom_objects)
        network.metadata.update(metadata)
        return network


def _checked_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a saved network. Raises UserError where they are no names and values."""
    metadata = config.get("metadata")
    if not isinstance(metadata, dict):
        raise UserError(f"metadata={metadata!r}: must be names and values")
    return metadata


def _is_plain(value: Any) -> bool:
    """Return whether a value is none that Keras would make an object of: a text, a number, a truth value, or a list."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


@contextlib.contextmanager
def build_settings(dtype: str) -> Iterator[None]:
    """Build layers channels_last and in `dtype`, whatever Keras's global settings are."""
    data_format, policy = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_image_data_format(data_format)
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Build layers whose variables have shapes but no values: quick, and without their memory.

    Such a network can be described, not run.
    """
    with keras_private.forgetting_variables(), keras.StatelessScope(initialize_variables=False):
        yield
