"""The grammar of the command line, up to the fields of an experiment; imports nothing heavy."""

import argparse
from pathlib import Path
from typing import Any


def run(text: str) -> Any:
    """The folder of a run, on this machine or in a bucket."""
    from user_llm.files import to_path

    try:
        return to_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local(text: str) -> Path:
    """A path on this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is not on this machine, where it is to be")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """Of all verbs, whose options are arguments of what `cli.TARGETS` names."""
    made = argparse.ArgumentParser(
        prog="user-llm", description="LLMs that read a user's timeline as embeddings."
    )
    verbs = made.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(verb: str, text: str, to: Any = verbs) -> argparse.ArgumentParser:
        sub = to.add_parser(verb.split()[-1], help=text, description=text)
        sub.set_defaults(verb=verb)
        return sub

    def rest(sub: argparse.ArgumentParser, shown: str, text: str) -> None:
        given = sub.add_argument("flags", nargs=argparse.REMAINDER, metavar=shown, help=text)
        given.required = False

    quickstart = add("quickstart", "train and judge a small model in minutes, offline")
    quickstart.add_argument(
        "--run-dir",
        dest="folder",
        type=run,
        default=Path("runs/quickstart"),
        help="where everything is written (default: %(default)s)",
    )

    for verb, text in {
        "run": "go through all stages of an experiment, then evaluate it",
        "pretrain": "train an experiment's user encoder",
        "finetune": "train its language model on top of the pre-trained encoder",
    }.items():
        sub = add(verb, text)
        told = "a file such as configs/quickstart.py, or the folder of a run that was interrupted"
        sub.add_argument("config", metavar="CONFIG", help=told)
        rest(sub, "--FIELD VALUE", f"`user-llm {verb} CONFIG --help` lists the fields")

    sweep = add("sweep", "run a table of experiments, one after the other, into one tidy file")
    sweep.add_argument("file", metavar="FILE", help="with `def sweep() -> Sweep`")
    sweep.add_argument(
        "--run-dir",
        dest="folder",
        type=local,
        help="where everything is written: runs/<FILE's name>",
    )
    sweep.add_argument(
        "--only", default="*", metavar="PATTERN", help="of the names of the experiments to run"
    )
    sweep.add_argument(
        "--record", action="store_true", help="adds the results to FILE's results.json"
    )

    evaluate = add("evaluate", "score a run's model and its baselines on the test users")
    report = add("report", "write a run's report as one HTML page")
    report.add_argument("--png", action="store_true", help="draw a sweep's figures as PNGs too")
    where = "of a sweep's file: where the page is written: runs/<FILE's name>_recorded"
    report.add_argument("--run-dir", type=local, help=where)

    benchmark = verbs.add_parser("benchmark", help="time what is here beside its peers")
    benchmark_verbs = benchmark.add_subparsers(title="verbs", metavar="VERB", required=True)
    inference = add("benchmark inference", "tell what a memory saves beside text", benchmark_verbs)
    rectools = add("benchmark rectools", "train RecTools' encoder beside a run's", benchmark_verbs)
    for sub in (evaluate, report, rectools):
        more = " or a sweep, or a sweep's file, of the figures that are recorded beside it"
        told = "the folder of a run" + (more if sub is report else "")
        sub.add_argument("folder", type=run, metavar="RUN", help=told)
    what = "whose system is measured; without it, ones of the published shape"
    inference.add_argument("run", type=run, nargs="?", metavar="RUN", help=what)
    encoder = add("benchmark encoder", "time an encoder's training", benchmark_verbs)
    decode = add("benchmark decode", "time generation beside transformers", benchmark_verbs)
    catalog = add("benchmark catalog", "time decoding that names items alone", benchmark_verbs)
    difference = add("benchmark difference", "time training with differences", benchmark_verbs)
    training = add("benchmark training", "time a decoder's training", benchmark_verbs)
    embedding = add("benchmark embedding", "time and kill `embed` over a crowd", benchmark_verbs)
    serving = add("benchmark serving", "load `serve`, and tell it what happens", benchmark_verbs)
    int8 = add("benchmark int8", "tell what a decoder loses in int8", benchmark_verbs)
    for sub, name in (
        (inference, "inference"),
        (encoder, "encoder"),
        (decode, "decode"),
        (catalog, "catalog"),
        (difference, "difference"),
        (training, "training"),
        (embedding, "embedding"),
        (serving, "serving"),
        (int8, "int8"),
    ):
        sub.add_argument(
            "--run-dir",
            dest="folder",
            type=local,
            default=Path(f"runs/benchmark_{name}"),
            help="where the figures are written (default: %(default)s)",
        )
    rounds = "processes of each side; of each figure the best one counts"
    for sub, flag, default, text in (
        (inference, "--rounds", 2, rounds),
        (encoder, "--steps", 24, "that each process is timed for; 47 are an epoch"),
        (encoder, "--rounds", 3, rounds),
        (decode, "--rounds", 3, rounds),
        (catalog, "--rounds", 15, "in which each step is timed; the fastest one counts"),
        (difference, "--rounds", 15, "steps of each system; the fastest one counts"),
        (training, "--steps", 8, "that each process is timed for; of them the middle one counts"),
        (training, "--rounds", 2, rounds),
        (embedding, "--users", 1_000_000, "whose timelines are of 5 to 50 events"),
        (serving, "--rounds", 2, "whose answers are put together"),
    ):
        text += " (default: %(default)s)"
        sub.add_argument(flag, type=int, default=default, metavar="N", help=text)
    encoder.add_argument(
        "--rectools",
        metavar="PYTHON",
        help="of an environment in which RecTools is installed: evaluates beside it too",
    )
    inference.add_argument(
        "--decoder",
        nargs="+",
        metavar="NAME",
        help="3m, 100m, or shapes that `user-llm zoo` lists (default: 3m 100m llama3_1b llama3_8b)",
    )
    inference.add_argument(
        "--history",
        dest="histories",
        type=int,
        nargs="+",
        metavar="N",
        help="events of a user (default: 25 50 100 200 400; of a run 10 25 50 100 200)",
    )
    decode.add_argument(
        "--decoder",
        metavar="NAME",
        help="a shape that `user-llm zoo` lists (default: a Llama of 134 M parameters)",
    )
    training.add_argument(
        "--decoder",
        nargs="+",
        metavar="NAME",
        help="3m, 134m, or shapes that `user-llm zoo` lists (default: 3m 134m)",
    )
    serving.add_argument(
        "--decoder", nargs="+", metavar="NAME", help="3m or 134m (default: both, of 3 and 134 M)"
    )
    for sub in (inference, decode, catalog, difference, training, embedding, serving):
        sub.add_argument(
            "--record",
            type=local,
            metavar="DIR",
            help="adds the figures to the results.json there, such as configs/benchmarks",
        )
    int8.add_argument("decoder", type=local, metavar="FOLDER", help="a decoder with its tokenizer")
    int8.add_argument("--text", type=local, required=True, metavar="FILE", help="to be foretold")
    rectools.add_argument(
        "--python",
        required=True,
        metavar="PYTHON",
        help="of an environment in which RecTools is installed",
    )
    rectools.add_argument(
        "--epochs",
        type=int,
        default=100,
        metavar="N",
        help="of RecTools' training at most (default: %(default)s)",
    )

    zoo = add("zoo", "list the named sizes of encoders and decoders with their parameters")
    zoo.add_argument(
        "--items",
        type=int,
        default=3_706,
        metavar="N",
        help="of the catalogue (default: %(default)s, as in MovieLens 1M)",
    )

    predict = add("predict", "recommend items to users, whom training need not have seen")
    embed = add("embed", "write what a run knows of all users, its own or others, to Parquet")
    events = "a table of user, item, timestamp, ...: .parquet, .csv, .json or .jsonl"
    for sub in (predict, embed):
        sub.add_argument("folder", type=run, metavar="RUN", help="the folder of a run")
        asked = sub is predict
        sub.add_argument("--events", type=local, metavar="FILE", required=asked, help=events)
    predict.add_argument(
        "--top", type=int, default=10, metavar="K", help="items a user (default: %(default)s)"
    )
    predict.add_argument("--out", type=local, metavar="FILE", help="JSON lines; shown if not given")
    embed.add_argument(
        "data",
        type=local,
        metavar="DATASET",
        nargs="?",
        help="the folder of a built data set; the run's own if not given",
    )
    embed.add_argument("--out", type=local, metavar="DIR", required=True, help="a folder of shards")
    embed.add_argument(
        "--memory",
        action="store_true",
        help="the tokens that the fine-tuned decoder reads, not the encoder's vectors",
    )

    export = add("export", "write a run's system, or its users, as files for serving")
    export.add_argument("folder", type=run, metavar="RUN", help="the folder of a run")
    export.add_argument("--out", type=local, metavar="DIR", required=True, help="a new folder")
    export.add_argument(
        "--format",
        dest="form",
        choices=("huggingface", "stablehlo", "soft-prompt", "vectors"),
        default="huggingface",
        help="whole; as programs; users as prompt embeddings, or as a table (default: %(default)s)",
    )
    export.add_argument(
        "--system",
        default="user_llm",
        metavar="NAME",
        help="which of the run's systems (default: %(default)s)",
    )
    export.add_argument(
        "--adapter",
        action="store_true",
        help="LoRA beside the decoder, as PEFT reads it; not in it",
    )
    told = f"of soft-prompt and vectors: their users, {events}; the run's own if not given"
    export.add_argument("--events", type=local, metavar="FILE", help=told)

    _add_serve(add("serve", "answer over HTTP, as OpenAI's API does, each user with his memory"))

    texts = add("embed-texts", "write the vectors of a built data set's texts, each one once")
    texts.add_argument(
        "encoder", type=local, metavar="ENCODER", help="a folder with a BERT and its tokenizer"
    )
    texts.add_argument("data", type=local, metavar="DIR", help="the folder of a built data set")
    texts.add_argument(
        "--of",
        choices=("reviews", "titles", "texts"),
        default="reviews",
        help="what users wrote, or items' titles or descriptions (default: %(default)s)",
    )
    texts.add_argument(
        "--out", type=local, metavar="DIR", required=True, help="a folder, to which new texts join"
    )
    texts.add_argument(
        "--instruction", default="", metavar="TEXT", help="what each text is read after"
    )

    dpl = add("dpl", "let a language model of an endpoint write users' last reviews")
    dpl.add_argument("folder", type=local, metavar="DIR", help="the folder of a built data set")
    told = "--url, --model, --out and more: `user-llm dpl DIR --help` lists them"
    rest(dpl, "--FLAG VALUE", told)

    data = verbs.add_parser("data", help="build data sets and look at them")
    data_verbs = data.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = add("data build", "build a data set from its raw files", to=data_verbs)
    build.add_argument("name", metavar="NAME", help="a builder, such as movielens")
    build.add_argument("--source", type=local, metavar="PATH", help="the folder of the raw files")
    build.add_argument("--version", default="", help="the builder's variant, such as 1m")
    build.add_argument(
        "--data-dir",
        type=local,
        default=Path("datasets"),
        metavar="DIR",
        help="where it is written (default: %(default)s)",
    )
    build.add_argument(
        "--beam",
        metavar="OPTIONS",
        help='let Apache Beam build it; its options: --beam="--runner=FlinkRunner"',
    )
    inspect = add("data inspect", "describe a built data set", to=data_verbs)
    inspect.add_argument("folder", type=local, metavar="DIR", help="the folder of a built data set")
    lamp = add(
        "data lamp-from-reviews", "make a set in LaMP's shape from a built data set", to=data_verbs
    )
    lamp.add_argument("folder", type=local, metavar="DIR", help="the folder of a built data set")
    lamp.add_argument(
        "--task",
        choices=("LaMP_2", "LaMP_3", "LaMP_4"),
        default="LaMP_3",
        help="a film's genre, a review's stars or its summary (default: %(default)s)",
    )
    lamp.add_argument(
        "--profile",
        type=int,
        default=512,
        metavar="N",
        help="entries of a profile, the newest (default: %(default)s)",
    )
    lamp.add_argument(
        "--questions",
        type=int,
        default=1,
        metavar="N",
        help="of a user for training at most (default: %(default)s)",
    )
    lamp.add_argument("--out", type=local, metavar="DIR", required=True, help="in LaMP's layout")

    launch = verbs.add_parser("launch", help="take an experiment to many machines")
    launch_verbs = launch.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb, text in {
        "check": "compile an experiment for a TPU topology without one",
        "render": "write the manifest of a job",
    }.items():
        sub = add(f"launch {verb}", text, to=launch_verbs)
        sub.add_argument("config", metavar="CONFIG", help="a file such as configs/quickstart.py")
        told = f"`user-llm launch {verb} CONFIG --help` lists them; and the experiment's fields"
        rest(sub, "--FLAG VALUE", told)
    return made


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "export", type=local, metavar="EXPORT", help="a folder that `user-llm export` wrote"
    )
    for flag, kind, default, text in (
        ("--host", str, "127.0.0.1", "where it listens"),
        ("--port", int, 8000, "0: any that is free"),
        ("--name", str, "", "what the model is called (default: as its folder)"),
        ("--users", str, "", "their store: a file, or redis://HOST (default: beside the export)"),
        ("--kept", int, 1000, "events of a user that are kept, the newest"),
        ("--ttl", float, None, "days after a user's last event when he is erased"),
        ("--api-keys", local, None, "a file of keys, one a line; or set USER_LLM_API_KEYS"),
        ("--rows", int, 16, "answers under way at a time"),
        ("--length", int, 512, "tokens of a prompt with its answer"),
        ("--waiting", int, 64, "requests that wait for their turn"),
        ("--cached", int, 256, "MiB of users' memories that are kept ready"),
        ("--body", int, 1024, "KiB of a request"),
        ("--seconds", float, 120.0, "until an answer is whole"),
        ("--requests", int, 256, "that are open at a time"),
    ):
        text += "" if default in ("", None) else " (default: %(default)s)"
        shown = {int: "N", float: "N", local: "FILE"}.get(kind, flag[2:].upper())
        serve.add_argument(flag, type=kind, default=default, metavar=shown, help=text)
    serve.add_argument(
        "--cold", action="store_true", help="compiles what answers take when they first take it"
    )
    serve.add_argument(
        "--unlocked", action="store_true", help="lets whoever reaches the server ask without a key"
    )
