"""`python -m worldr1.report FOLDER [--open]`: write the page of a run or an evaluation, finished or stopped early."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from worldr1.report.page import write_report


def main(argv: list[str] | None = None) -> int:
    """Write the page and print where it is; exit code 2 with one line where the folder cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m worldr1.report", description="Write FOLDER/report.html.")
    parser.add_argument("folder", type=Path, help="output_dir of a training run or of an evaluation")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args(argv)
    try:
        page = write_report(args.folder)
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    if args.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
