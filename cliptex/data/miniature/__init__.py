"""The miniature: rendered synthetic replacements for the real data sets, in their official layouts."""
