"""Lines of the log that sum up what was told before."""

from collections.abc import Iterable


def repeats(texts: Iterable[str], said: str) -> int:
    """How often it was said that something has happened again. The lines come at the back-end's
    stop, and on a slow machine every 10 s before it.
    """
    numbers = [text.split() for text in texts if said in text]
    assert all(words[-2:] == ["more", "times"] for words in numbers), numbers
    return sum(int(words[-3]) for words in numbers)
