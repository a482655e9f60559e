"""`python -m visard`: the command line."""

from visard_cli.app import main

main()
