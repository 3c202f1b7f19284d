"""Mistakes of a user told in words: which errors are such, what they say, and in whose terms."""

import re
import traceback
from collections.abc import Mapping

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


def is_users_mistake(error: BaseException) -> bool:
    """Whether the error names a file, or is a ValueError raised by this package itself."""
    if isinstance(error, OSError):
        return error.filename is not None or _raised_here(error)
    return isinstance(error, ValueError) and _raised_here(error)


def _raised_here(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__", "")).startswith(f"{__package__}.")


def message_of(error: BaseException) -> str:
    """What an error says; of the operating system's without its number ("[Errno 2]")."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def with_flags(text: str, flags: Mapping[str, str], *, of: Mapping[str, str] | None = None) -> str:
    """A message with the flags of a program (or the names of a page's controls) for the names of arguments.

    An argument is a name marked as code (`i0`) or followed by a value (stack=2, resample=True). A flag that the message
    already has in parentheses behind it is not said twice. Arguments of `read_volume` without a flag are said to be such,
    and longer pieces of code stay.

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
