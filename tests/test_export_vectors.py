"""Vectors as a table: those of `embed`, with what a feature store wants to know of them."""

import json
import shutil
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exports_made import untrained

from user_llm import trained
from user_llm.inference.vectors import fingerprint
from user_llm.serving import export, sealed, vectors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        run = untrained(folder / "run", patch)
        patch.setattr(vectors, "SHARD", 16)
        export.export(run, folder / "out", "vectors")
        yield run, folder / "out"


def test_a_table_holds_what_the_encoder_says_of_each_user(made):
    run, folder = made
    table, data = vectors.load(folder), run.dataset
    recommender = trained.recommender(run)
    wanted = recommender.states(data, np.arange(len(data.users)))
    assert table["user"].to_pylist() == list(data.users)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 8)
    assert table.schema.field("event_timestamp").type == pa.timestamp("ms", "UTC")
    found = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    newest = [int(at.timestamp()) for at in table["event_timestamp"].to_pylist()]
    assert newest == data.times[data.offsets[1:] - 1].tolist()
    index = json.loads((folder / sealed.INDEX).read_text())
    assert index["model"] == fingerprint(recommender.params) and index["dimension"] == 8
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert metadata == {k: str(index[k]) for k in ("model", "dimension", "date")}
    assert datetime.fromisoformat(metadata["date"]).utcoffset() is not None
    assert {path.name for path in folder.iterdir()} == {
        sealed.INDEX,
        vectors.TABLE,
        "selftest.safetensors",
    }
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_damaged_tables_and_those_of_others_are_refused(made, tmp_path):
    copy = shutil.copytree(made[1], tmp_path / "copy")
    table = pq.read_table(copy / vectors.TABLE)
    pq.write_table(table.slice(1), copy / vectors.TABLE)
    with pytest.raises(ValueError, match="users.parquet is damaged, or of another export"):
        vectors.load(copy)
    index = json.loads((copy / sealed.INDEX).read_text())
    index |= {"files": sealed.hashes(copy), "model": "another"}
    (copy / sealed.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="rows, vectors, model differ from what was exported"):
        vectors.load(copy)


def test_users_of_a_file_and_systems(made, tmp_path):
    run, _ = made
    rows = [{"user": u, "item": "1", "timestamp": 1_700_000_000 + i} for i, u in enumerate("ba")]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    export.export(run, tmp_path / "out", "vectors", events=tmp_path / "events.jsonl")
    table = vectors.load(tmp_path / "out")
    assert table["user"].to_pylist() == ["a", "b"]
    assert [int(x.timestamp()) for x in table["event_timestamp"].to_pylist()] == [
        1_700_000_001,
        1_700_000_000,
    ]
    with pytest.raises(ValueError, match="leave --system no_context out"):
        export.export(run, tmp_path / "other", "vectors", name="no_context")
