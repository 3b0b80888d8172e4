"""A run directory as one offline HTML file: ``render(run) -> path``."""

from workbench.report.render import render

__all__ = ["render"]
