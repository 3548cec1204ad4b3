"""The one error of the embedded servers."""

from chassis.errors import CannotStart


class EmbeddedServerError(CannotStart):
    """An embedded server cannot run. The text says what is wrong and what to do about it."""
