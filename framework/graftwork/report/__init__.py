"""The report pages: of a run, of a reproduction over seeds, of a sweep, of several runs side by side."""

from graftwork.report.comparison import write_comparison
from graftwork.report.page import write_page
from graftwork.report.rendering import check_target

__all__ = ["check_target", "write_comparison", "write_page"]
