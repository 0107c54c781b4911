"""The official data of the benchmarks: the table of archives, download, safe unpacking, status.

In      the table of archives, the user's folders, the web.
Out     resources/{benchmark} in the official layout, with `official.json` once it is complete and checked.
Must not know how a layout is read (see `cliptex.benchmarks`), except that a reader exists.
"""
