"""A folder's files -> report.html: of a run, or of an evaluation."""

from __future__ import annotations

from pathlib import Path

from worldr1.report import evaluation_page, run_page
from worldr1.report.load import load_run
from worldr1.report.load_evaluation import is_evaluation, load_evaluation
from worldr1.run.files import write_text


def write_report(folder: Path, *, live: bool = False) -> Path:
    """Write FOLDER/report.html from the files of a run or of an evaluation; the page needs nothing outside itself.

    Args:
      folder: `output_dir` of a run or of an evaluation, finished or stopped early.
      live: The run goes on, and will write the page again: it loads itself anew every REFRESH_S seconds.
    Returns:
      Path of the page; an older page is replaced in one step.
    Raises:
      ValueError: the folder is neither.
      RuntimeError: the page cannot be written.
    """
    folder = Path(folder)
    if is_evaluation(folder):
        html = evaluation_page.render(load_evaluation(folder))
    else:
        html = run_page.render(load_run(folder), live=live)
    target = folder / "report.html"
    try:
        write_text(target, html)
    except OSError as error:
        raise RuntimeError(f"report: {target} must be writable, got {error}; free space or change its mode") from error
    return target
