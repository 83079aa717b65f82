"""The table of personas, on questions that the embedded world asks."""

import importlib.util
from pathlib import Path

import pytest
import transformers
from test_text_encoders import write_theirs
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from user_llm import runs
from user_llm import sweep as sweeps
from user_llm.config import (
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    LanguageModelConfig,
    SourceConfig,
    Sweep,
)
from user_llm.data import builders
from user_llm.data.dataset import load
from user_llm.evaluation import comparison, evaluate, report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = Path(__file__).parents[1] / "configs" / "lamp" / "personas.py"
WORLD = SourceConfig(users=100, profile=8, questions=8)
DECODER = DecoderConfig(
    vocab_size=600,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=24,
    max_position_embeddings=256,
)


def personas():
    spec = importlib.util.spec_from_file_location("personas", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for row in ("pplug_unlabelled", "pplug_whole"):  # which others nearly are
        del module.CHIEF[row]
    return module


@pytest.fixture
def reader(tmp_path):
    """The folder of a random text encoder that knows the world's words."""
    built = builders.build("world", source=None, data_dir=tmp_path / "data", users=WORLD.users)
    said = " ".join(load(built).reviews).lower()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(said)}
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
    folder = tmp_path / "reader"
    write_theirs(folder, vocab_size=len(vocabulary))
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {
        f"{n}_token": mark for n, mark in zip(("pad", "unk", "cls", "sep"), special, strict=True)
    }
    transformers.BertTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    return folder


def test_rows_of_the_table_are_told_the_same_questions(tmp_path, reader, mesh, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = DataConfig(
        name="lamp",
        version="LaMP_3",
        made_from=WORLD,
        protocol="by_file",
        text_encoder=str(reader),
    )
    experiments = tuple(
        personas().table(
            "world",
            "LaMP_3",
            data,
            language_model=LanguageModelConfig(architecture=DECODER),
            encoder=EncoderConfig(window=33, embed=16, layers=1, heads=1, mlp=32),
            seeds=1,
            runs="runs/world",
            variants=False,
            steps=20,
            taught=350,
            pretrained=30,
            tokens=(64, 128),
        )
    )
    folder, first = Path("runs/world"), None
    figures = {}
    for experiment in experiments:
        run = runs.Run(experiment, sweeps.place(folder, experiment))
        run.mesh = mesh()
        if first is None:
            first = run
        first.share(run)
        for row in evaluate.evaluate(run)["rows"]:
            figures[experiment.name, row["system"]] = row["metrics"].get("test/LaMP_3/mae")
        report.write(run.folder)
    sweeps.write(folder, Sweep(experiments=experiments))
    page = comparison.write(folder).read_text()
    words, memories = ("random", "recency", "bm25"), ("pplug_paper", "pplug", "pplug_mean")
    for row in ("no_profile", *words, *memories, "timeline"):
        assert f">{'world ' + row.replace('_', ' ')}<" in page
    for row in (*memories, "timeline"):
        assert (f"world_{row}", "shuffled_memory") in figures
    (popular,) = {value for (_, system), value in figures.items() if system == "popularity"}
    for row in ("taught", "no_profile", *memories):  # who reads reviews knows their stars
        assert figures[f"world_{row}", "user_llm"] < popular
