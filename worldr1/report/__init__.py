"""The page of a run or an evaluation: reads the files of a folder and writes one self-contained report.html."""

from worldr1.report.live import LivePage
from worldr1.report.page import write_report

__all__ = ["LivePage", "write_report"]
