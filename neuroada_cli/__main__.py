"""`python -m neuroada_cli` is the `neuroada` command."""

from neuroada_cli.cli.app import main

main()
