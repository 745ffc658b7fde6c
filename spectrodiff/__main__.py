"""`python -m spectrodiff` is the command `spectrodiff`."""

from spectrodiff.cli import main

main()
