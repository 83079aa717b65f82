"""Few sizes for many lengths, because every shape is compiled once."""

LONG = 512  # tokens from which on half of a row is too much to waste


def bucket(length: int, least: int = 16) -> int:
    """The next power of two, from `least` on."""
    return max(least, 1 << max(0, length - 1).bit_length())


def row_length(length: int) -> int:
    """The tokens of a row that holds so many: that power, or a long one's next quarter."""
    size = bucket(length)
    if size <= LONG:
        return size
    quarter = size // 8  # of the power below
    return -(-length // quarter) * quarter
