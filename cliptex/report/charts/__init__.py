"""The report's charts, as scripts that also run without the package.

In      a table of numbers, as CSV.
Out     a chart for the page, or for a column of a paper.
Must not know the rest of the package: the report writes these files to results/report/figures/, where they can be
changed.
"""
