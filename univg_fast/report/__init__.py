"""The report: one self-contained HTML page of a run's or an evaluation's folder, and boxes drawn on images."""

from univg_fast.report.html import write_report, write_sheet

__all__ = ["write_report", "write_sheet"]
