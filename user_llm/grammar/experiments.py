"""The verbs of an experiment: to run its stages here, to take them elsewhere, to choose sizes."""

from pathlib import Path

from user_llm.grammar.options import WRITTEN, Verbs, add, group, local, rest, run

FILE = "a file such as configs/quickstart.py"


def quickstart(verbs: Verbs) -> None:
    sub = add(verbs, "quickstart", "train and judge a small model in minutes, offline")
    sub.add_argument(
        "--run-dir",
        dest="folder",
        type=run,
        default=Path("runs/quickstart"),
        help=f"{WRITTEN} (default: %(default)s)",
    )


def stages(verbs: Verbs) -> None:
    for verb, text in {
        "run": "go through all stages of an experiment, then evaluate it",
        "pretrain": "train an experiment's user encoder",
        "finetune": "train its language model on top of the pre-trained encoder",
    }.items():
        sub = add(verbs, verb, text)
        told = f"{FILE}, or the folder of a run that was interrupted"
        sub.add_argument("config", metavar="CONFIG", help=told)
        rest(sub, "--FIELD VALUE", f"`user-llm {verb} CONFIG --help` lists the fields")


def sweep(verbs: Verbs) -> None:
    text = "run a table of experiments, one after the other, into one tidy file"
    sub = add(verbs, "sweep", text)
    sub.add_argument("file", metavar="FILE", help="with `def sweep() -> Sweep`")
    told = f"{WRITTEN}: runs/<FILE's name>"
    sub.add_argument("--run-dir", dest="folder", type=local, help=told)
    told = "of the names of the experiments to run"
    sub.add_argument("--only", default="*", metavar="PATTERN", help=told)
    told = "adds the results to FILE's results.json"
    sub.add_argument("--record", action="store_true", help=told)


def zoo(verbs: Verbs) -> None:
    text = "list the named sizes of encoders and decoders with their parameters"
    sub = add(verbs, "zoo", text)
    told = "of the catalogue (default: %(default)s, as in MovieLens 1M)"
    sub.add_argument("--items", type=int, default=3_706, metavar="N", help=told)


def launch(verbs: Verbs) -> None:
    launches = group(verbs, "launch", "take an experiment to many machines")
    for verb, text in {
        "check": "compile an experiment for a TPU topology without one",
        "render": "write the manifest of a job",
    }.items():
        sub = add(launches, f"launch {verb}", text)
        sub.add_argument("config", metavar="CONFIG", help=FILE)
        told = f"`user-llm launch {verb} CONFIG --help` lists them; and the experiment's fields"
        rest(sub, "--FLAG VALUE", told)
