"""The C core by ctypes: pointers and sizes, and NumPy arrays; no framework."""
