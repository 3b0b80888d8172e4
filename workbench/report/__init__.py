"""Runs and notebooks as offline HTML files: ``render(runs) -> path``, ``notebook.render_notebook(file) -> path``."""

from workbench.report.document import render

__all__ = ["render"]
