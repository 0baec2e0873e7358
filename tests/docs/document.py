"""The code blocks of a Markdown document, and running them as a reader would.

A document is run from top to bottom in a directory of its own. A ``python`` block is run as a
script, or saved if the comment before it says ``<!-- file: NAME -->``; an ``xml`` block has to be
saved. In a ``console`` block each line after ``$`` is a command; the lines below are what it
prints, where ``...`` stands for anything, and ``[status N]`` for how it ends if that is not 0. A
command that ends in ``&`` serves until the end of the document. ``<!-- not run here: REASON -->``
before a block leaves it out.
"""

import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

LIMIT = 60.0
"""Seconds for each command."""

LANGUAGES = ("console", "python", "text", "xml")


class Block(NamedTuple):
    """One fenced block; ``note`` is the comment before it."""

    language: str
    note: str
    text: str
    line: int


class Command(NamedTuple):
    """One command of a console block."""

    words: str
    expected: str
    status: int

    @property
    def serves(self) -> bool:
        return self.words.endswith(" &")


def blocks(markdown: str) -> Iterator[Block]:
    fenced = re.compile(
        r"(?:^<!-- ((?:(?!-->).)*) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
    )
    for found in fenced.finditer(markdown):
        line = markdown.count("\n", 0, found.start(2)) + 1
        yield Block(found[2], found[1] or "", found[3], line)


def commands(text: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        written = re.split(r"(?<!\\)\n", part, maxsplit=1)
        words, output = written[0].replace("\\\n", " "), "".join(written[1:])
        status = re.search(r"^\[status (\d+)\]\n?", output, re.MULTILINE)
        expected = output.replace(status[0], "") if status else output
        yield Command(" ".join(words.split()), expected.strip(), int(status[1]) if status else 0)


def matches(expected: str, printed: str) -> bool:
    """Whether the output is the expected one, in which ``...`` stands for anything."""
    pattern = ".*".join(map(re.escape, expected.split("...")))
    # A column of numbers is as wide as its numbers.
    pattern = re.sub(r"(\\ )+", r"\\s+", pattern)
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


class Reader:
    """Follows a document in ``directory``. A context manager that ends what it started.

    ``programs`` are directories of programs to find before others; commands that call a program of
    ``absent`` are left out. ``within`` are words that run another command in a world of its own.
    """

    def __init__(
        self,
        directory: Path,
        *,
        programs: Sequence[Path] = (),
        absent: Collection[str] = (),
        within: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self._within = within
        self.absent = absent
        self._serving: list[subprocess.Popen[str]] = []
        path = [*map(str, programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        kept = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
        self._environment = kept | {"PATH": ":".join(path)}

    def follow(self, block: Block) -> None:
        assert block.language in LANGUAGES, f"a block of {block.language!r}: nobody would test it"
        if block.note.startswith("not run here:") or block.language == "text":
            return
        if block.language == "console":
            for command in commands(block.text):
                self._run(command)
        elif block.note.startswith("file: "):
            (self.directory / block.note.removeprefix("file: ")).write_text(block.text)
        else:
            assert block.language == "python", "a block that is neither run nor saved"
            script = self.directory / f"line{block.line}.py"
            script.write_text(block.text)
            self._run(Command(f"python {script.name}", "", 0))

    def _run(self, command: Command) -> None:
        if command.words.partition(" ")[0] in self.absent:
            return
        if command.serves:
            self._serve(command)
            return
        done = subprocess.run(
            [*self._within, "bash", "-c", command.words],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        printed = f"$ {command.words}\n{done.stdout}\n[status {done.returncode}]"
        assert done.returncode == command.status, printed
        assert not command.expected or matches(command.expected, done.stdout), printed

    def _serve(self, command: Command) -> None:
        server = subprocess.Popen(
            [*self._within, "bash", "-c", f"exec {command.words.removesuffix(' &')}"],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._serving.append(server)
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in command.expected.splitlines()]
        printed = "".join(lines)
        assert matches(command.expected, printed), f"$ {command.words}\n{printed}"

    def end_servers(self) -> None:
        """Ends the servers as Ctrl-C would, and checks that they had nothing to complain of."""
        while self._serving:
            with self._serving.pop() as server:
                server.terminate()
                complaints, _ = server.communicate(timeout=LIMIT)
            assert (server.returncode, complaints) == (0, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._serving:
            server.kill()
            server.communicate()
