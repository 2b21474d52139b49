"""Benchmarks: ratios taken in one run, the rivals alternating, never absolute times."""
