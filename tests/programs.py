"""Programs started in this process, for tests."""

import io
import json
import sys
from contextlib import redirect_stdout


def run(main, *arguments: str) -> dict:
    """Start a program; the last line it prints. SystemExit if it fails."""
    before, sys.argv = sys.argv, ["program", *arguments]
    try:
        with redirect_stdout(io.StringIO()) as printed:
            main()
        return json.loads(printed.getvalue().splitlines()[-1])
    finally:
        sys.argv = before
