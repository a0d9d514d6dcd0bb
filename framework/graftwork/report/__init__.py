"""The report page of a run."""

from graftwork.report.page import write_page

__all__ = ["write_page"]
