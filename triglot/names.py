"""How the command line names a feature group or view: STORE/NAME/VERSION."""

from __future__ import annotations

from typing import NamedTuple

from chassis.errors import WrongSetting


class Name(NamedTuple):
    """A feature group or view."""

    store: str
    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.store}/{self.name}/{self.version}"


def parse(text: str, store: str | None = None, version: int | None = None) -> Name:
    """STORE/NAME or STORE/NAME/VERSION; NAME alone where the store is given beside it. Raises WrongSetting."""
    parts = text.split("/")
    if len(parts) == 1 and store:
        parts = [store, *parts]
    if len(parts) == 2:
        parts.append(str(version or 1))
    if len(parts) != 3 or not all(parts):
        raise WrongSetting(f"{text!r} must be STORE/NAME or STORE/NAME/VERSION")
    if not (parts[2].isascii() and parts[2].isdigit() and 1 <= int(parts[2]) < 2**31):
        raise WrongSetting(f"{text!r}: {parts[2]!r} is no version")
    return Name(parts[0], parts[1], int(parts[2]))
