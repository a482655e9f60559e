"""`python -m visard_cli`: the command line."""

from visard_cli.app import main

main()
