"""`python -m worldr1.rehearsal build DIR`: tiny models of random weights, and the command that trains on them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from worldr1.rehearsal.build import build, command


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folders and print the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m worldr1.rehearsal",
        description="Tiny folders of the real classes (Wan, Depth Anything 3, Qwen3-VL, HPSv3, LPIPS) with random "
        "weights, to try the very command of a real run. Their scores mean nothing.",
    )
    parser.add_argument("what", choices=["build"])
    parser.add_argument("folder", type=Path, help="where they go; new, empty or of an earlier rehearsal")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        for part in build(args.folder, seed=args.seed):
            print(f"{args.folder / part.name}  {time.perf_counter() - start:.1f} s", flush=True)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("Random weights: what is trained on them shows that everything runs, and its scores mean nothing.")
    print(command(args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
