"""Faults that a user can mend."""


class InputError(ValueError):
    """Bad input: the message names the value and the remedy. Scripts print it and exit with code 2."""
