"""Few sizes for many lengths, because every shape is compiled once."""


def bucket(length: int, least: int = 16) -> int:
    """The next power of two, from `least` on."""
    return max(least, 1 << max(0, length - 1).bit_length())
