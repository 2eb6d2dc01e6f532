"""An evaluation's folder in the layouts that benchmarks of the field read: one module a benchmark."""
