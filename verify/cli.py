"""The command `ringfence`. Nothing heavy is imported before a command runs, so that `--help` is quick."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from verify.allocator import hold_freed
from verify.commands import COMMANDS
from verify.exits import ERROR, INTERRUPTED
from verify.startup import quick_exit
from verify.terminal import complain, put


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. Every deliberate error is one line on stderr and exit code 2; a defect of ours is a traceback and 2."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    hold_freed()
    try:
        code = ringfence.main(given, prog_name="ringfence", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
        message = _message(error)
        if message is None:
            # Python's own exit code for an exception is 1, which would read as "falsified".
            traceback.print_exc()
        else:
            complain(message)
        code = ERROR
    quick_exit()
    sys.exit(code)


def _message(error: Exception) -> str | None:
    """What to tell about a mistake of the user's, or None for one of ours, which keeps its traceback."""
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "ringfence"
        return f"{error.format_message().rstrip(chr(46))} (see {command} --help)"
    errors = sys.modules.get("bounds.errors")
    return str(error) if errors is not None and isinstance(error, errors.RingfenceError) else None


def _version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        put(f"ringfence {version('ringfence')}")
        context.exit()


class _AsListed(click.Group):
    """Commands in the order of `COMMANDS`, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_AsListed,
    commands=COMMANDS,
    epilog="Exit codes: 0 verified, 1 falsified, 2 bad input or usage, 3 unknown; for several questions the worst in the order 2, 1, 3, 0.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True},
)
@click.option("--version", is_flag=True, expose_value=False, callback=_version, is_eager=True, help="Show the version and exit.")
def ringfence() -> None:
    """Prove what a neural network can and cannot output on a whole region of inputs."""
