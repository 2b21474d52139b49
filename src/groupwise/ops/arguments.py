"""What the operations check of the arguments that they share."""

import keras


def checked_data_format(data_format: str | None) -> str:
    """Return "channels_last" or "channels_first", Keras's setting for None, or raise ValueError."""
    if data_format not in (None, "channels_last", "channels_first"):
        raise ValueError(f'data_format={data_format!r}: must be "channels_last", "channels_first" or None')
    return str(data_format or keras.config.image_data_format())
