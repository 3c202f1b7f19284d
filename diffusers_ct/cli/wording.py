"""Messages of the library name arguments of Python; here they get the flags of a command instead."""

from functools import cache

from ..mistakes import with_flags


def in_flags(text: str, command: str) -> str:
    """A message with a command's flags for the names of arguments that it has flags for; see `with_flags`.

    Args:
        text: error, note or problem.
        command: its name, such as "prepare". `inspect` tells what to do next, and so has the flags of the commands that do
            it, and names these.
    """
    if command != "inspect":
        return with_flags(text, _flags(command))
    own = _flags(command)
    flags: dict[str, str] = dict(own)
    having: dict[str, list[str]] = {}
    for name in ("simulate", "restore", "prepare"):
        for argument, flag in _flags(name).items():
            if argument not in own:
                flags.setdefault(argument, flag)
                having.setdefault(argument, []).append(name)
    return with_flags(text, flags, of={argument: f" of {' and '.join(names)}" for argument, names in having.items()})


@cache
def _flags(command: str) -> dict[str, str]:
    """Parameter of a command -> its flag, such as "series_uid" -> "--series-uid"."""
    import typer

    from . import COMMANDS, build_app

    if command not in COMMANDS:
        return {}
    parameters = typer.main.get_command(build_app()).commands[command].params  # type: ignore[attr-defined]
    return {p.name: p.opts[0] for p in parameters if p.opts[0].startswith("--")}
