"""What a text names: a path here, or one in a bucket."""

from pathlib import Path

import pytest

from user_llm import cli, files
from user_llm.files import nearby, to_path, upload


def test_a_text_without_a_store_is_a_path_on_this_machine():
    assert to_path("runs/quickstart") == Path("runs/quickstart")
    assert isinstance(to_path("runs/quickstart"), Path)


def test_other_stores_are_refused():
    with pytest.raises(ValueError, match=r"s3://bucket/run: of all stores, .* gs:// alone"):
        to_path("s3://bucket/run")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gs://bucket/run .* missing: pip install gcsfs"):
        to_path("gs://bucket/run")


def test_the_command_line_refuses_them_too(monkeypatch, capsys):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "gs://bucket/run"])
    assert "pip install gcsfs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["predict", "runs/x", "--events", "x.csv", "--out", "gs://bucket/out.jsonl"])
    assert "gs://bucket/out.jsonl is not on this machine" in capsys.readouterr().err


def test_a_folder_on_this_machine_is_nearby_itself(tmp_path):
    with nearby(tmp_path / "absent") as folder:
        assert folder == tmp_path / "absent"


def test_a_folder_is_copied_with_all_that_is_in_it(tmp_path):
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "deep" / "file").write_text("text")
    (tmp_path / "to" / "deep").mkdir(parents=True)
    upload(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to" / "deep" / "file").read_text() == "text"
