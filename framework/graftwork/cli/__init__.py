"""The command line: `graft`. A user's mistake is a message and exit status 2, never a traceback."""

from __future__ import annotations

import sys

from graftwork.errors import GraftworkError

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    from graftwork.cli.commands import app
    from graftwork.cli.terminal import printable

    try:
        app(prog_name="graft")
    except GraftworkError as error:
        print(f"graft: {printable(error)}", file=sys.stderr)
        sys.exit(error.exit_status)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        sys.stderr.close()
        sys.exit(1)
