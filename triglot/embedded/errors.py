"""The one error of the embedded servers."""


class EmbeddedServerError(Exception):
    """An embedded server cannot run. The text says what is wrong and what to do about it."""
