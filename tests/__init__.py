"""The suite: `python -m tests` runs it on every installed backend, `pytest` on Keras's active one."""
