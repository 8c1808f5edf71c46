"""`python -m neuroada_cli` is the `neuroada` command."""

from neuroada_cli import stopping


def main() -> None:
    """The installed command, which has a process for itself: it ends with it."""
    try:
        command()
    except SystemExit as end:
        from neuroada_cli import failures

        failures.leave(end.code if isinstance(end.code, int) else int(end.code is not None))


def command() -> None:
    """Raises SystemExit. What a signal does is settled before anything else is imported."""
    stopping.install()
    from neuroada_cli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
