"""Sequences of item ids become timelines in their order; what is none is refused."""

import pytest

from user_llm.data.builders import build
from user_llm.data.dataset import load

S3REC = "7 30 4 4\n2 9 30 x1\n"


def sequences_in(folder, text=S3REC, attributes='{"30": [1, 2], "9": []}'):
    (folder / "Toys.txt").write_text(text)
    if attributes:
        (folder / "Toys_item2attributes.json").write_text(attributes)
    return build("sequences", source=folder, data_dir=folder / "made", version="Toys")


def test_sequences_keep_their_order_their_repeats_and_their_attributes(tmp_path):
    data = load(sequences_in(tmp_path))
    assert data.users == ("7", "2")
    assert [data.items.ids[i] for i in data.item] == ["30", "4", "4", "9", "30", "x1"]
    assert data.times.tolist() == [0, 1, 2, 0, 1, 2]
    values = data.vocabularies["attributes"].values
    told = data.items.features["attributes"][data.items.ids.index("30")]
    assert sorted(values[i - 2] for i in told if i) == ["1", "2"]
    assert not data.items.features["attributes"][data.items.ids.index("9")].any()


def test_sequences_by_event_are_those_by_user(tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "rows").mkdir()
    pairs = load(sequences_in(tmp_path / "pairs", "7 30\n7 4\n2 9\n7 4\n", ""))
    rows = load(sequences_in(tmp_path / "rows", "7 30 4 4\n2 9\n", ""))
    assert pairs.hash == rows.hash


@pytest.mark.parametrize(
    ("text", "attributes", "told"),
    [
        ("", "", "holds no sequences"),
        ("7 30 4\n8\n", "", "not so line 2"),
        ("7 30 4\n7 9 4\n", "", "two lines of user 7"),
        (S3REC, "[1]", "must map items to lists of attributes"),
        (S3REC, "{", "must map items to lists of attributes"),
    ],
)
def test_what_is_no_sequence_is_refused(text, attributes, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        sequences_in(tmp_path, text, attributes)


def test_a_version_without_its_file_names_those_there_are(tmp_path):
    (tmp_path / "Beauty.txt").write_text(S3REC)
    with pytest.raises(ValueError, match="needs the file Toys.txt in .* versions there: Beauty"):
        build("sequences", source=tmp_path, data_dir=tmp_path, version="Toys")


def test_the_published_amazon_sequences_have_their_published_counts(data_folder, tmp_path):
    source = data_folder / "s3rec"
    data = load(build("sequences", source=source, data_dir=tmp_path, version="Beauty"))
    counts = len(data.users), len(data.items.ids) - 2, len(data.item)
    assert counts == (22_363, 12_101, 198_502)
    first = (source / "Beauty.txt").read_text().splitlines()[0].split()
    user = data.users.index(first[0])
    events = data.item[data.offsets[user] : data.offsets[user + 1]]
    assert [data.items.ids[i] for i in events] == first[1:]
