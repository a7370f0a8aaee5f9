"""Numbers of things as people say them."""


def counted(number: int, thing: str) -> str:
    """As in "1 step" and "3 steps"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
