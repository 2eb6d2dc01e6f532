"""`python -m worldr1.report RUN_DIR [--open]`: write the report of a run, finished or stopped early."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from worldr1.report.page import write_report


def main(argv: list[str] | None = None) -> int:
    """Write the page and print where it is; exit code 2 with one line where the run directory cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m worldr1.report", description="Write RUN_DIR/report.html.")
    parser.add_argument("run_dir", type=Path, help="output_dir of a training run")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args(argv)
    try:
        page = write_report(args.run_dir)
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    if args.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
