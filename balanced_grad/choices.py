"""Options that are one of a few words."""

from typing import Any, get_args


def check_choice(setting: str, value: object, choices: Any, otherwise: str = "") -> None:
    """Refuse what is not among the values of a ``Literal``; ``otherwise`` says what else could be written."""
    if value not in get_args(choices):
        raise ValueError(f"{setting}={value!r}: choose one of {get_args(choices)}{otherwise}")
