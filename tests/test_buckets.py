"""Buckets: few sizes for many lengths."""

from user_llm.inference.buckets import bucket, row_length


def test_few_lengths_are_compiled():
    assert [bucket(n) for n in (1, 16, 17, 32, 33, 100)] == [16, 16, 32, 32, 64, 128]
    assert [bucket(n, least=1) for n in (0, 1, 2, 3, 4, 5, 100)] == [1, 1, 2, 4, 4, 8, 128]


def test_long_rows_waste_a_fifth_at_most():
    assert [row_length(n) for n in (1, 17, 500, 512)] == [16, 32, 512, 512]
    assert [row_length(n) for n in (513, 641, 1024, 1025, 1281, 4000)] == [
        640,
        768,
        1024,
        1280,
        1536,
        4096,
    ]
