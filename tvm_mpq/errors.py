"""The one exception for what a user can cause and mend, and the one warning."""


class MpqError(Exception):
    """A mistake in what the user gave: its message is one line that says what is wrong and what to do.

    The command line prints it and ends with exit code 2; Python callers may catch it.
    """


class MpqWarning(UserWarning):
    """Something a user may want to know of, and that stops nothing; the command line prints it as a note."""
