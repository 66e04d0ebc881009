"""The page that tells how a run went: one HTML file that needs nothing else."""

from pixel2gene.report.page import write_report

__all__ = ["write_report"]
