"""Messages of the library name arguments of Python; here they get the flags of a command instead."""

import re
from collections.abc import Mapping
from functools import cache

# Arguments whose flag has another name, where a command has it.
_OTHER_NAMES = {
    "audit": "memorisation",
    "classifier_scale": "classifier_guidance",
    "dose_fraction": "dose",
    "dose_fractions": "dose",
    "guidance_scale": "guidance",
    "limits": "limit",
    "low_dose_fraction": "dose",
    "num_inference_steps": "steps",
    "num_samples": "samples",
    "part": "shard",
    "regions": "region",
    "shard_size_mb": "shard_size",
    "slice_spacing_mm": "slice_thickness",
    "slice_thickness_mm": "slice_thickness",
    "spacing_mm": "spacing",
}
_OF_READ_VOLUME = ("assume_hu", "resample", "series_uid", "slice_spacing_mm", "stack")


def in_flags(text: str, command: str) -> str:
    """A message with a command's flags for the names of arguments that it has flags for.

    An argument is a name marked as code (`i0`) or followed by a value (stack=2, resample=True). A flag that the message
    already has in parentheses behind it is not said twice. Arguments of `read_volume` without a flag are said to be such,
    and longer pieces of code stay.

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


def with_flags(text: str, flags: Mapping[str, str], *, of: Mapping[str, str] | None = None) -> str:
    """The same for any program that has flags, such as a training script.

    Args:
        text: error, note or problem.
        flags: from an argument to its flag.
        of: from an argument to what is said behind its flag.
    """
    names = "|".join(sorted({*flags, *_OTHER_NAMES, *_OF_READ_VOLUME}, key=len, reverse=True))

    def flagged(match: re.Match[str]) -> str:
        argument = match["code"] or match["name"]
        if argument is None:
            return match[0]
        parameter = argument if argument in flags else _OTHER_NAMES.get(argument, "")
        flag = flags.get(parameter)
        if flag is None:
            of_reading = argument in _OF_READ_VOLUME
            return f"{match[0]} of `diffusers_ct.read_volume` (Python)" if of_reading else match[0]
        said = flag if match["value"] in (None, "True") else f"{flag} {match['value']}"
        return said + (of or {}).get(parameter, "")

    argument = rf"`[^`]*[(=][^`]*`|`(?P<code>{names})`|(?<![\w`./-])(?P<name>{names})=(?P<value>''|\w+(?:\.\w+)*)"
    return re.sub(rf"(?:{argument})(?: \(--[a-z0-9-]+\))?", flagged, text)


def message_of(error: BaseException) -> str:
    """What an error says; of the operating system's without its number ("[Errno 2]")."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@cache
def _flags(command: str) -> dict[str, str]:
    """Parameter of a command -> its flag, such as "series_uid" -> "--series-uid"."""
    import typer

    from . import COMMANDS, build_app

    if command not in COMMANDS:
        return {}
    parameters = typer.main.get_command(build_app()).commands[command].params  # type: ignore[attr-defined]
    return {p.name: p.opts[0] for p in parameters if p.opts[0].startswith("--")}
