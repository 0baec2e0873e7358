"""The parser of one command's options."""

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from .exits import Exit, Failure
from .streams import out

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as a :class:`Failure` of one line."""

    def __init__(self, command: str, summary: str, **options: Any) -> None:
        super().__init__(
            prog=f"vhost-user {command}",
            description=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    @property
    def arguments(self) -> Sequence[argparse.Action]:
        """All arguments and options that it has been told of."""
        return self._actions

    def print_help(self, file: Any = None) -> None:
        """Prints the help as the command prints everything; ``file`` is not looked at."""
        out(self.format_help().rstrip("\n"))

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options; words in between may be positional. An unknown option gets a hint."""
        options, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            hint = self._hint(unknown[0].partition("=")[0], options)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options

    def error(self, message: str) -> NoReturn:
        """Ends the command with ``message``."""
        raise Failure(f"{message} (see {self.prog} --help)", status=Exit.USAGE)

    def _hint(self, word: str, options: argparse.Namespace) -> str:
        known = list(self._option_string_actions)
        if not word.startswith("-"):
            given = (getattr(options, name, None) for name in ("socket_path", "fd"))
            lacks_socket = "--socket-path" in known and all(value is None for value in given)
            return f"; a socket is told by --socket-path {word}" if lacks_socket else ""
        longer = [option for option in known if option.startswith(word)]
        hint = f"; did you mean {longer[0]}?" if longer else did_you_mean(word, known)
        if not hint and "settings" in options:
            hint = f"; an option of the device class is written {word.lstrip('-')}=VALUE"
        return hint


class Once(argparse.Action):
    """Stores a value, and refuses a second one instead of forgetting the first."""

    of_one = "socket"

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Stores ``values``."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice: one command serves one {self.of_one}")
        setattr(namespace, self.dest, values)


class OnceDisk(Once):
    """The same for a disk's option."""

    of_one = "disk"


def checked(convert: Callable[[str], T]) -> Callable[[str], T]:
    """Lets a converter's own ``ValueError`` be what the user reads."""

    def converter(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converter


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that is most like ``word``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.65)
    return f"; did you mean {close[0]}?" if close else ""
