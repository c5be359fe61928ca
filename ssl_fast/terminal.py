"""Text for a terminal: names that come out of files and folders may hold control sequences, which it would obey."""

import typing


def printable(text: object, keep: str = "") -> str:
    """str(text), in which what does not print is escaped as in Python's literals ("\\x1b", "\\u202e", "\\udce9"):
    control characters (C0, C1), marks of direction and other invisible ones, lone surrogates. keep: such characters
    that are not escaped."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in str(text))


class PrintableStream:
    """Writes to another text stream what is `printable`, and line feeds; for the rest it is that stream."""

    def __init__(self, stream: typing.TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text, keep="\n"))
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
