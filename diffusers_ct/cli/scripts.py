"""Mistakes in the arguments of a script, such as the training examples: one line that names flags, and status 2."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from ..mistakes import is_users_mistake, message_of, with_flags


@contextmanager
def one_line_mistakes(
    parser: argparse.ArgumentParser, other_names: Mapping[str, str] | None = None
) -> Iterator[Callable[[str], NoReturn]]:
    """A context in which a mistake of the user's ends the script with one line on stderr; a bug keeps its traceback.

    Gives a function that ends it so with a message of the script's own.

    Args:
        parser: of the script; arguments that messages name become its flags.
        other_names: argument of the library -> flag, where they differ from the parser's.
    """
    flags = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    flags |= other_names or {}

    def refuse(message: str) -> NoReturn:
        parser.exit(2, f"error: {with_flags(message, flags)}\n")

    try:
        yield refuse
    except (ValueError, OSError) as error:
        if not is_users_mistake(error):
            raise
        refuse(message_of(error))
