"""The report: one self-contained HTML page of a run folder, and boxes drawn on images."""

from univg_fast.report.html import write_report, write_sheet

__all__ = ["write_report", "write_sheet"]
