"""The screen of ``vhost-user top`` by ``rich``, where that is installed."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.table import Table


class Screen:
    """A table that is drawn anew in place; a context manager that gives the terminal back."""

    def __init__(self, head: Sequence[str], cells: Callable[[dict[str, Any]], list[str]]) -> None:
        self._head, self._cells = head, cells
        self._live = Live(auto_refresh=False)

    def _show(self, title: str, queues: list[dict[str, Any]]) -> None:
        table = Table(title=title, title_justify="left")
        for name in self._head:
            table.add_column(name, justify="right")
        for queue in queues:
            style = "red" if queue["errors"] or queue["oldest"] > 1 else None
            table.add_row(*self._cells(queue), style=style)
        self._live.update(table, refresh=True)

    def __enter__(self) -> Callable[[str, list[dict[str, Any]]], None]:
        self._live.__enter__()
        return self._show

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._live.__exit__(kind, error, trace)
