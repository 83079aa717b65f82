"""A random text encoder that knows a few words."""

from collections.abc import Sequence
from pathlib import Path

import transformers
from test_text_encoders import write_theirs
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["the", "a", "film", "was", "good", "bad", "long", "funny", "sad", "ending", "of", "actor"]


def write_encoder(folder: Path, words: Sequence[str]) -> Path:
    """A folder with a random BERT and a tokenizer of at most 90 words."""
    write_theirs(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *words, *"0123"])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    marks = ("pad", "unk", "cls", "sep", "mask")
    named = {f"{name}_token": mark for name, mark in zip(marks, special, strict=True)}
    transformers.BertTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    return folder
