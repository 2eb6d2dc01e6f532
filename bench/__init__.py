"""Benchmarks: `python -m pytest bench/ -s` measures, `--record` appends the figures to bench/history/."""
