"""The report of a growth run: one HTML file, made from the run directory alone, that needs no network.

``gather`` reads the run directory into plain data, ``page`` puts the data into the template; what is seen is
drawn by the scripts in ``assets``.
"""

from morphir.report.gather import gather
from morphir.report.page import REPORT_FILE, render, write_report

__all__ = ["REPORT_FILE", "gather", "render", "write_report"]
