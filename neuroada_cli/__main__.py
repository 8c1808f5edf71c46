"""`python -m neuroada_cli` is the `neuroada` command."""

from neuroada_cli import stopping


def main() -> None:
    """The installed command: what a signal does is settled before anything else is imported."""
    stopping.install()
    from neuroada_cli.cli.app import main as command

    command()


if __name__ == "__main__":
    main()
