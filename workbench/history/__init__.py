"""Runs that were kept: the index of a runs' home, labels, retention, and the comparison of runs.

``index`` lists (``workbench.runs()``), ``labels`` holds tags and notes, ``retention`` removes, archives and prunes,
``compare`` compares (``workbench.compare([...])``). Nothing here draws on ranks or changes a log.
"""
