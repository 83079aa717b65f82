"""The verbs of an experiment: to run its stages here, to take them elsewhere, to choose sizes."""

from pathlib import Path

from user_llm.grammar.options import WRITTEN, Verbs, add, count, group, local, rest, run

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
    of_zoo = group(verbs, "zoo", "tell which systems there are, and what they came to")
    listed = add(of_zoo, "zoo list", "list all systems with their results")
    shown = add(of_zoo, "zoo show", "tell all of one system, and how to load it")
    shown.add_argument("name", metavar="NAME", help="as `user-llm zoo list` has it")
    table = add(of_zoo, "zoo table", "write the index of all systems, DIR/README.md")
    told = "count the parameters of what was not counted, or is another since, where its data are"
    counted = add(of_zoo, "zoo count", told)
    for sub in (listed, shown, table, counted):
        told = "the folder of the configs and their results (default: %(default)s)"
        default = Path("configs")
        sub.add_argument("--configs", type=local, default=default, metavar="DIR", help=told)
    told = "list the named sizes of encoders and decoders with their parameters"
    sizes = add(of_zoo, "zoo sizes", told)
    count(sizes, "--items", 3_706, "of the catalogue, by default as in MovieLens 1M")


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
