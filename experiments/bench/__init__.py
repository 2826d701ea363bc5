"""Benchmarks, one for each committed number: `python -m experiments.bench.NAME --help`."""
