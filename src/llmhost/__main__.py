"""`python -m llmhost`, and the `llmhost` command."""

import sys


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        from llmhost import __version__

        sys.stdout.write(f"llmhost {__version__}\n")
        return
    try:
        from llmhost.cli.main import app

        app(prog_name="llmhost")
    except KeyboardInterrupt:  # before or after typer's own watch
        sys.exit(130)


if __name__ == "__main__":
    main()
