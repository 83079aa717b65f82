"""The verbs of a data set: to build it, to look at it, and to read its texts."""

from pathlib import Path

from user_llm.grammar.options import SET, Verbs, add, count, group, local, rest


def embed_texts(verbs: Verbs) -> None:
    sub = add(verbs, "embed-texts", "write the vectors of a built data set's texts, each one once")
    told = "a folder with a BERT and its tokenizer"
    sub.add_argument("encoder", type=local, metavar="ENCODER", help=told)
    sub.add_argument("data", type=local, metavar="DIR", help=SET)
    sub.add_argument(
        "--of",
        choices=("reviews", "titles", "texts"),
        default="reviews",
        help="what users wrote, or items' titles or descriptions (default: %(default)s)",
    )
    told = "a folder, to which new texts join"
    sub.add_argument("--out", type=local, metavar="DIR", required=True, help=told)
    told = "what each text is read after"
    sub.add_argument("--instruction", default="", metavar="TEXT", help=told)


def dpl(verbs: Verbs) -> None:
    sub = add(verbs, "dpl", "let a language model of an endpoint write users' last reviews")
    sub.add_argument("folder", type=local, metavar="DIR", help=SET)
    told = "--url, --model, --out and more: `user-llm dpl DIR --help` lists them"
    rest(sub, "--FLAG VALUE", told)


def data(verbs: Verbs) -> None:
    of_data = group(verbs, "data", "build data sets and look at them")
    _build(of_data)
    inspect = add(of_data, "data inspect", "describe a built data set")
    inspect.add_argument("folder", type=local, metavar="DIR", help=SET)
    _lamp_from_reviews(of_data)


def _build(verbs: Verbs) -> None:
    sub = add(verbs, "data build", "build a data set from its raw files")
    sub.add_argument("name", metavar="NAME", help="a builder, such as movielens")
    sub.add_argument("--source", type=local, metavar="PATH", help="the folder of the raw files")
    sub.add_argument("--version", default="", help="the builder's variant, such as 1m")
    sub.add_argument(
        "--data-dir",
        type=local,
        default=Path("datasets"),
        metavar="DIR",
        help="where it is written (default: %(default)s)",
    )
    told = 'let Apache Beam build it; its options: --beam="--runner=FlinkRunner"'
    sub.add_argument("--beam", metavar="OPTIONS", help=told)


def _lamp_from_reviews(verbs: Verbs) -> None:
    text = "make a set in LaMP's shape from a built data set"
    sub = add(verbs, "data lamp-from-reviews", text)
    sub.add_argument("folder", type=local, metavar="DIR", help=SET)
    sub.add_argument(
        "--task",
        choices=("LaMP_2", "LaMP_3", "LaMP_4"),
        default="LaMP_3",
        help="a film's genre, a review's stars or its summary (default: %(default)s)",
    )
    count(sub, "--profile", 512, "entries of a profile, the newest")
    count(sub, "--questions", 1, "of a user for training at most")
    sub.add_argument("--out", type=local, metavar="DIR", required=True, help="in LaMP's layout")
