"""`user-llm`: one verb per command. A verb's code is imported when it is called, not before."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from user_llm.config import Experiment, Sweep

# What each verb calls with its options as keyword arguments.
TARGETS = {
    "quickstart": "user_llm.quickstart:main",
    "run": "user_llm.commands:run",
    "sweep": "user_llm.commands:sweep",
    "pretrain": "user_llm.commands:run",
    "finetune": "user_llm.commands:run",
    "evaluate": "user_llm.commands:evaluate",
    "report": "user_llm.commands:write_report",
    "benchmark inference": "user_llm.commands:benchmark_inference",
    "benchmark encoder": "user_llm.commands:benchmark_encoder",
    "benchmark decode": "user_llm.commands:benchmark_decode",
    "benchmark catalog": "user_llm.commands:benchmark_catalog",
    "benchmark difference": "user_llm.commands:benchmark_difference",
    "benchmark int8": "user_llm.commands:benchmark_int8",
    "benchmark rectools": "user_llm.commands:benchmark_rectools",
    "zoo": "user_llm.commands:zoo",
    "predict": "user_llm.commands:predict",
    "embed": "user_llm.commands:embed",
    "embed-texts": "user_llm.commands:embed_texts",
    "dpl": "user_llm.evaluation.dpl:main",
    "data build": "user_llm.commands:data_build",
    "data inspect": "user_llm.commands:data_inspect",
    "data lamp-from-reviews": "user_llm.commands:lamp_from_reviews",
    "launch check": "user_llm.launch.check:main",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0, or 2 for an error that the user can mend.

    A verb's own exit passes through: 42 says preempted, and saved.
    """
    logging.basicConfig(format="%(levelname)s %(message)s")  # libraries from WARNING on
    logging.getLogger("user_llm").setLevel(logging.INFO)
    _leave_absent_tpus()
    options = vars(_parser().parse_args(argv))
    verb = options.pop("verb")
    try:
        if verb == "launch check":
            options = _check_options(**options)
        elif "config" in options:
            options = _experiment_options(verb, **options)
        if verb == "sweep":
            options["table"] = load_sweep(options["file"])
        if verb == "report" and options["folder"].suffix == ".py":
            options["table"] = load_sweep(str(options["folder"]))
        _load(TARGETS[verb])(**options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _leave_absent_tpus() -> None:
    """Keeps JAX from looking for a TPU, for seconds and aloud, where there is but its compiler.

    A chip would be on the PCI bus, under Google's number. Other accelerators are left to JAX.
    """
    others = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    if "JAX_PLATFORMS" in os.environ or others or not find_spec("libtpu"):
        return
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if not any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors):
        os.environ["JAX_PLATFORMS"] = "cpu"


def load_config(path: str) -> "Experiment":
    """The experiment that the `config()` of a Python file returns, or that of a run's folder.

    Raises:
      ValueError: there is no such file, it has no `config()`, or that returns something else.
    """
    from user_llm.config import Experiment

    if (begun := Path(path, "config.json")).is_file():
        return Experiment.model_validate_json(begun.read_text())
    experiment = _returned(path, "config", "Experiment")
    if not isinstance(experiment, Experiment):
        raise ValueError(f"config() in {path} returned {experiment!r}; return an Experiment")
    return experiment


def load_sweep(path: str) -> "Sweep":
    """The table of experiments that the `sweep()` of a Python file returns.

    Raises:
      ValueError: there is no such file, it has no `sweep()`, or that returns something else.
    """
    from user_llm.config import Sweep

    table = _returned(path, "sweep", "Sweep")
    if not isinstance(table, Sweep):
        raise ValueError(f"sweep() in {path} returned {table!r}; return a Sweep")
    return table


def _returned(path: str, name: str, kind: str) -> Any:
    """What a function of a Python file returns."""
    spec = spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"{path} is not a Python file; name one with `def {name}() -> {kind}`")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(function := getattr(module, name, None)):
        raise ValueError(f"{path} has no {name}(); write `def {name}() -> {kind}` in it")
    return function()


def _experiment_options(verb: str, config: str, flags: list[str]) -> dict[str, Any]:
    """The options of a verb with a CONFIG: its experiment with the flags' fields replaced."""
    import tyro

    from user_llm.config import Experiment

    default = load_config(config)

    def options(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
        run_dir: str = "",
        record: bool = False,
        seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    ) -> dict[str, Any]:
        """Every field of the experiment can be overridden.

        Args:
          experiment: what the config file describes
          run_dir: where everything is written; empty: runs/<name>
          record: adds the results to the config's results.json
          seeds: runs seeds 0 to N - 1, a folder for each, and shows their mean and spread
        """
        if seeds < 1:
            raise ValueError(f"--seeds {seeds} runs nothing; give 1 or more")
        begun = config if Path(config).is_dir() else f"runs/{experiment.name}"
        folder = Path(run_dir or begun)
        own = {"experiment": experiment, "folder": folder, "record": record, "seeds": seeds}
        return own | {"verb": verb, "config": config}

    return tyro.cli(
        options,
        args=flags,
        prog=f"user-llm {verb} {config}",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )


def _check_options(config: str, flags: list[str]) -> dict[str, Any]:
    """The options of `launch check`: its experiment with the flags' fields replaced, and where."""
    import tyro

    from user_llm.config import Experiment

    default = load_config(config)

    def options(
        topology: Annotated[str, tyro.conf.arg(metavar="KIND:SHAPE")],
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
        search: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
        record: bool = False,
    ) -> dict[str, Any]:
        """Compiles an experiment's stages for a TPU topology; every field can be overridden.

        Args:
          topology: such as v5e:16x16 or v5p:8x8x16
          experiment: what the config file describes
          search: tries so many meshes, remat policies and batch sizes, and ranks them
          record: adds the results to the config's results.json
        """
        asked = {"topology": topology, "search": search, "record": record, "config": config}
        return asked | {"experiment": experiment}

    return tyro.cli(
        options,
        args=flags,
        prog=f"user-llm launch check {config}",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )


def _load(target: str) -> Callable[..., Any]:
    """The function that `module:name` stands for."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def _parser() -> argparse.ArgumentParser:
    """The grammar of the command line, up to the fields of an experiment."""
    parser = argparse.ArgumentParser(
        prog="user-llm", description="LLMs that read a user's timeline as embeddings."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(verb: str, text: str, to: Any = verbs) -> argparse.ArgumentParser:
        sub = to.add_parser(verb.split()[-1], help=text, description=text)
        sub.set_defaults(verb=verb)
        return sub

    quickstart = add("quickstart", "train and judge a small model in minutes, offline")
    quickstart.add_argument(
        "--run-dir",
        dest="folder",
        type=Path,
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
        flags = sub.add_argument(
            "flags",
            nargs=argparse.REMAINDER,
            metavar="--FIELD VALUE",
            help=f"`user-llm {verb} CONFIG --help` lists the fields",
        )
        flags.required = False

    sweep = add("sweep", "run a table of experiments, one after the other, into one tidy file")
    sweep.add_argument("file", metavar="FILE", help="with `def sweep() -> Sweep`")
    sweep.add_argument(
        "--run-dir",
        dest="folder",
        type=Path,
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
    report.add_argument("--run-dir", type=Path, help=where)

    benchmark = verbs.add_parser("benchmark", help="time what is here beside its peers")
    benchmark_verbs = benchmark.add_subparsers(title="verbs", metavar="VERB", required=True)
    inference = add("benchmark inference", "tell what a memory saves beside text", benchmark_verbs)
    rectools = add("benchmark rectools", "train RecTools' encoder beside a run's", benchmark_verbs)
    for sub in (evaluate, report, rectools):
        more = " or a sweep, or a sweep's file, of the figures that are recorded beside it"
        told = "the folder of a run" + (more if sub is report else "")
        sub.add_argument("folder", type=Path, metavar="RUN", help=told)
    what = "whose system is measured; without it, ones of the published shape"
    inference.add_argument("run", type=Path, nargs="?", metavar="RUN", help=what)
    encoder = add("benchmark encoder", "time an encoder's training", benchmark_verbs)
    decode = add("benchmark decode", "time generation beside transformers", benchmark_verbs)
    catalog = add("benchmark catalog", "time decoding that names items alone", benchmark_verbs)
    difference = add("benchmark difference", "time training with differences", benchmark_verbs)
    int8 = add("benchmark int8", "tell what a decoder loses in int8", benchmark_verbs)
    for sub, name in (
        (inference, "inference"),
        (encoder, "encoder"),
        (decode, "decode"),
        (catalog, "catalog"),
        (difference, "difference"),
        (int8, "int8"),
    ):
        sub.add_argument(
            "--run-dir",
            dest="folder",
            type=Path,
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
    for sub in (inference, decode, catalog, difference):
        sub.add_argument(
            "--record",
            type=Path,
            metavar="DIR",
            help="adds the figures to the results.json there, such as configs/benchmarks",
        )
    int8.add_argument("decoder", type=Path, metavar="FOLDER", help="a decoder with its tokenizer")
    int8.add_argument("--text", type=Path, required=True, metavar="FILE", help="to be foretold")
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
    embed = add("embed", "write the vectors of all users of a run's data set, or of a file")
    events = "a table of user, item, timestamp, ...: .parquet, .csv, .json or .jsonl"
    for sub in (predict, embed):
        sub.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
        asked = sub is predict
        sub.add_argument("--events", type=Path, metavar="FILE", required=asked, help=events)
    predict.add_argument(
        "--top", type=int, default=10, metavar="K", help="items a user (default: %(default)s)"
    )
    predict.add_argument("--out", type=Path, metavar="FILE", help="JSON lines; shown if not given")
    embed.add_argument("--out", type=Path, metavar="DIR", required=True, help="a folder of shards")

    texts = add("embed-texts", "write the vectors of a built data set's texts, each one once")
    texts.add_argument(
        "encoder", type=Path, metavar="ENCODER", help="a folder with a BERT and its tokenizer"
    )
    texts.add_argument("data", type=Path, metavar="DIR", help="the folder of a built data set")
    texts.add_argument(
        "--of",
        choices=("reviews", "titles", "texts"),
        default="reviews",
        help="what users wrote, or items' titles or descriptions (default: %(default)s)",
    )
    texts.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="a folder, to which new texts join"
    )
    texts.add_argument(
        "--instruction", default="", metavar="TEXT", help="what each text is read after"
    )

    dpl = add("dpl", "let a language model of an endpoint write users' last reviews")
    dpl.add_argument("folder", type=Path, metavar="DIR", help="the folder of a built data set")
    told = "--url, --model, --out and more: `user-llm dpl DIR --help` lists them"
    flags = dpl.add_argument("flags", nargs=argparse.REMAINDER, metavar="--FLAG VALUE", help=told)
    flags.required = False

    data = verbs.add_parser("data", help="build data sets and look at them")
    data_verbs = data.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = add("data build", "build a data set from its raw files", to=data_verbs)
    build.add_argument("name", metavar="NAME", help="a builder, such as movielens")
    build.add_argument("--source", type=Path, metavar="PATH", help="the folder of the raw files")
    build.add_argument("--version", default="", help="the builder's variant, such as 1m")
    build.add_argument(
        "--data-dir",
        type=Path,
        default=Path("datasets"),
        metavar="DIR",
        help="where it is written (default: %(default)s)",
    )
    inspect = add("data inspect", "describe a built data set", to=data_verbs)
    inspect.add_argument("folder", type=Path, metavar="DIR", help="the folder of a built data set")
    made = add(
        "data lamp-from-reviews", "make a set in LaMP's shape from a built data set", to=data_verbs
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="the folder of a built data set")
    made.add_argument(
        "--task",
        choices=("LaMP_2", "LaMP_3", "LaMP_4"),
        default="LaMP_3",
        help="a film's genre, a review's stars or its summary (default: %(default)s)",
    )
    made.add_argument(
        "--profile",
        type=int,
        default=512,
        metavar="N",
        help="entries of a profile, the newest (default: %(default)s)",
    )
    made.add_argument(
        "--questions",
        type=int,
        default=1,
        metavar="N",
        help="of a user for training at most (default: %(default)s)",
    )
    made.add_argument("--out", type=Path, metavar="DIR", required=True, help="in LaMP's layout")

    launch = verbs.add_parser("launch", help="prepare jobs on pods")
    launch_verbs = launch.add_subparsers(title="verbs", metavar="VERB", required=True)
    check = add(
        "launch check", "compile an experiment for a TPU topology without one", launch_verbs
    )
    check.add_argument("config", metavar="CONFIG", help="a file such as configs/quickstart.py")
    told = "`user-llm launch check CONFIG --help` lists them; --topology KIND:SHAPE is needed"
    flags = check.add_argument(
        "flags", nargs=argparse.REMAINDER, metavar="--FIELD VALUE", help=told
    )
    flags.required = False
    return parser


if __name__ == "__main__":
    sys.exit(main())
