"""Entry point of `python -m cliptex`."""

from cliptex.cli import main

main()
