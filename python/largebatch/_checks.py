# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How arguments are refused: one line, `Class: argument: got A, expected B.`."""


def refuse(obj, argument, got, expected, error=ValueError):
    """Raise, with one line that names class and argument."""
    where = obj if isinstance(obj, str) else type(obj).__name__
    raise error(f"{where}: {argument}: got {got!r}, expected {expected}.")


def check_number(obj, argument, value, expected, fits):
    """Refuse what is not a number, or not one that fits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(obj, argument, value, expected, TypeError)
    if not fits(value):
        refuse(obj, argument, value, expected)


def check_whole(obj, argument, value, expected, fits):
    """Refuse what is not an integer, or not one that fits."""
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(obj, argument, value, expected, TypeError)
    if not fits(value):
        refuse(obj, argument, value, expected)


def check_choice(obj, argument, value, choices):
    """Refuse what is none of some words."""
    if value not in choices:
        words = [f'"{word}"' for word in choices]
        refuse(obj, argument, value, f"{', '.join(words[:-1])} or {words[-1]}")
