"""A run directory as one offline HTML file: ``render(run) -> path``."""

from workbench.report.document import render

__all__ = ["render"]
