"""The command line: thin. Every command says what it did, and a user's mistake ends in one message.

A module holds the commands of one purpose; importing it registers them, in the order in which --help lists them.
"""

from __future__ import annotations

import io
import sys
import warnings

import selfdistill

from selfdistill.cli import train, evaluate, diagnose, picture, em, lab, share, describe, images  # isort: skip  # --help lists them so
from selfdistill.cli.app import app, said
from selfdistill.errors import Failure, Misuse

__all__ = ["app", "describe", "diagnose", "em", "evaluate", "images", "lab", "main", "picture", "share", "train"]

app.info.help = selfdistill.__doc__.splitlines()[0]


def main() -> None:
    """Exit codes: 0, 1 for a failure, 2 for misuse, 128 + the signal's number when one ended the run after saving it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no UTF-8
    warnings.formatwarning = lambda message, *args, **kwargs: f"{message}\n"  # to a user, who has no use for our line of code
    try:
        app()
    except Misuse as e:
        sys.exit(said(e, 2))
    except (Failure, OSError) as e:  # OSError: a full disk, a folder that vanished
        sys.exit(said(e, 1))
