"""`python -m llmhost`, and the `llmhost` command."""

import sys
from typing import Any


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        from llmhost import __version__

        sys.stdout.write(f"llmhost {__version__}\n")
        return
    try:
        _program()(prog_name="llmhost")
    except KeyboardInterrupt:  # before or after typer's own watch
        sys.exit(130)


def _program() -> Any:
    """All commands; for a node, which is to start soon, that one."""
    if sys.argv[1:2] != ["serve"]:
        from llmhost.cli.main import app

        return app
    from llmhost.cli import serve
    from llmhost.cli.program import make_program

    return make_program([serve])


if __name__ == "__main__":
    main()
