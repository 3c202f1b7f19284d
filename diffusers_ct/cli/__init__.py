"""The command line `diffusers-ct`: one file a command. Arguments are parsed before torch is imported.

A command's function has the name of its file (with _ for -) and imports what it needs in its body. Exit status: 0 done, 1 done but
something had to be left out (or, of `inspect`, cannot be read), 2 the command cannot be carried out as given, 130 stopped.
"""

import sys
from importlib import import_module

import typer

from ..mistakes import is_users_mistake, message_of
from .wording import in_flags

COMMANDS = (
    "inspect",
    "prepare",
    "simulate",
    "restore",
    "synthesize",
    "evaluate",
    "card",
    "card-dataset",
    "push",
    "deidentify",
    "demo",
    "models",
)


def build_app() -> typer.Typer:
    """The application with all its commands."""
    app = typer.Typer(
        help="Diffusion models for computed tomography. For research use, not a medical device.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def tell_version(asked: bool) -> None:
        if asked:
            from .. import __version__

            typer.echo(__version__)
            raise typer.Exit()

    @app.callback()
    def version(
        show: bool = typer.Option(
            False, "--version", help="Print the version and exit.", is_eager=True, callback=tell_version
        ),
    ) -> None:
        """What stands before a command; the option is answered by its own callback, before a command is missed."""

    for name in COMMANDS:
        function = name.replace("-", "_")
        app.command(name)(getattr(import_module(f".{function}", __name__), function))
    return app


def main() -> None:
    """Runs the command line; a mistake of the user's ends in one message and status 2, a bug in its traceback."""
    try:
        build_app()()
    except (ValueError, OSError) as error:
        if not is_users_mistake(error):
            raise
        command = next((word for word in sys.argv[1:] if word in COMMANDS), "")
        typer.echo(f"error: {in_flags(message_of(error), command)}", err=True)
        sys.exit(2)
