"""TensorFlow: `native` is what `groupwise.backends.active` is where Keras runs on it."""
