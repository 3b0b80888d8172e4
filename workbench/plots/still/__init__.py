"""Still pictures of Bokeh figures, drawn by matplotlib: as SVG for reports, on the axes of a PNG for notebooks.

``picture.draw`` puts one figure on a canvas and ``picture.still`` makes its SVG. ``rows`` reads a glyph's columns,
``glyphs`` turns a glyph into matplotlib artists, ``axes`` sets ranges, ticks, legend and colour bar as the figure has
them, ``svg`` makes matplotlib's SVG small and lets its colours follow the page. Import a module of this package only
when a picture is to be drawn: matplotlib takes a second to import.
"""
