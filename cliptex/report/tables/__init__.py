"""The tables of the report, one module per part of the page.

In      the gathered results of a run (`cliptex.report.gather`).
Out     tables with cells, for HTML and CSV.
Must not know how results were computed, and reads no files.
"""
