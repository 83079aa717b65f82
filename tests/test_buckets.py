"""Buckets: few sizes for many lengths."""

from user_llm.inference.buckets import bucket


def test_few_lengths_are_compiled():
    assert [bucket(n) for n in (1, 16, 17, 32, 33, 100)] == [16, 16, 32, 32, 64, 128]
    assert [bucket(n, least=1) for n in (0, 1, 2, 3, 4, 5, 100)] == [1, 1, 2, 4, 4, 8, 128]
