"""`python -m graftwork`: the same as `graft`."""

from graftwork.cli import main

main()
