"""The page of a run: reads the files of a run directory and writes one self-contained report.html."""

from worldr1.report.page import write_report

__all__ = ["write_report"]
