"""Text for people: what comes from outside made safe to show, and numbers with their nouns."""

from __future__ import annotations


def escaped(text: str) -> str:
    """Return a text in which every control character, also the newline, is an escape sequence one can read."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
