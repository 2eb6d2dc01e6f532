"""Judges, a file each; `registry.load_judge` opens the one that a folder's config.json names."""
