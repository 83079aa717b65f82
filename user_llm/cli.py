"""`user-llm`: one verb per command. A verb's code is imported when it is called, not before."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from user_llm import grammar

if TYPE_CHECKING:
    from user_llm.config import Experiment, Sweep
    from user_llm.zoo.entries import Zoo

# What each verb calls with its options as keyword arguments.
TARGETS = {
    "quickstart": "user_llm.quickstart:main",
    "run": "user_llm.commands:run",
    "sweep": "user_llm.commands:sweep",
    "pretrain": "user_llm.commands:run",
    "finetune": "user_llm.commands:run",
    "evaluate": "user_llm.commands:evaluate",
    "report": "user_llm.commands:write_report",
    "benchmark inference": "user_llm.benchmarks:inference",
    "benchmark encoder": "user_llm.benchmarks:encoder",
    "benchmark decode": "user_llm.benchmarks:decode",
    "benchmark catalog": "user_llm.benchmarks:catalog",
    "benchmark difference": "user_llm.benchmarks:difference",
    "benchmark training": "user_llm.benchmarks:training",
    "benchmark embedding": "user_llm.benchmarks:embedding",
    "benchmark serving": "user_llm.benchmarks:serving",
    "benchmark int8": "user_llm.benchmarks:int8",
    "benchmark rectools": "user_llm.benchmarks:rectools",
    "zoo sizes": "user_llm.zoo.verbs:sizes",
    "zoo list": "user_llm.zoo.verbs:listed",
    "zoo show": "user_llm.zoo.verbs:show",
    "zoo table": "user_llm.zoo.verbs:table",
    "zoo count": "user_llm.zoo.verbs:parameters",
    "predict": "user_llm.commands:predict",
    "embed": "user_llm.commands:embed",
    "export": "user_llm.commands:export",
    "serve": "user_llm.commands:serve",
    "embed-texts": "user_llm.commands:embed_texts",
    "dpl": "user_llm.evaluation.dpl:main",
    "data build": "user_llm.commands:data_build",
    "data inspect": "user_llm.commands:data_inspect",
    "data lamp-from-reviews": "user_llm.commands:lamp_from_reviews",
    "launch check": "user_llm.launch.check:main",
    "launch render": "user_llm.launch.render:main",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0, or 2 for an error that the user can mend.

    A verb's own exit passes through: 42 says preempted, and saved.
    """
    logging.basicConfig(format="%(levelname)s %(message)s")  # libraries from WARNING on
    logging.getLogger("user_llm").setLevel(logging.INFO)
    _leave_absent_tpus()
    options = vars(grammar.parser().parse_args(argv))
    _let_import(Path.cwd())
    verb = options.pop("verb")
    try:
        if verb.startswith("launch "):
            options = _launch_options(verb, **options)
        elif "config" in options:
            options = _experiment_options(verb, **options)
        if verb == "sweep":
            options["table"] = load_sweep(options["file"])
        if verb == "report" and options["folder"].suffix == ".py":
            options["table"] = load_sweep(str(options["folder"]))
        if "configs" in options:
            options["zoo"], options["experiments"] = load_zoo(options["configs"])
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
    from user_llm.files import to_path

    if (begun := to_path(path) / "config.json").is_file():
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


def load_zoo(folder: Path) -> tuple["Zoo", dict[str, tuple["Experiment", ...]]]:
    """What the `zoo()` of a folder's `zoo.py` lists, and the experiments of each file it names.

    Raises:
      ValueError: there is no such file, or none of those it names; it has no `zoo()`, or that
        returns something else.
    """
    from user_llm.zoo.entries import Zoo

    if not (listed := folder / "zoo.py").is_file():
        raise ValueError(
            f"{folder} holds no zoo.py, which lists the systems; configs come with a checkout, not "
            "with the package: go there, or name their folder with --configs DIR"
        )
    zoo, found = _returned(str(listed), "zoo", "Zoo"), {}
    if not isinstance(zoo, Zoo):
        raise ValueError(f"zoo() in {listed} returned {zoo!r}; return a Zoo")
    for entry in zoo.systems:
        path = str(folder / entry.config)
        if entry.config not in found:
            found[entry.config] = (
                load_sweep(path).experiments if entry.row else (load_config(path),)
            )
    return zoo, found


def _returned(path: str, name: str, kind: str) -> Any:
    """What a function of a Python file returns."""
    spec = spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"{path} is not a Python file; name one with `def {name}() -> {kind}`")
    module = module_from_spec(spec)
    _let_import(Path(path).resolve().parent)
    spec.loader.exec_module(module)
    if not callable(function := getattr(module, name, None)):
        raise ValueError(f"{path} has no {name}(); write `def {name}() -> {kind}` in it")
    return function()


def _let_import(folder: Path) -> None:
    """Makes modules of a folder found, such as streams of one's own; those installed come first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _experiment_options(verb: str, config: str, flags: list[str]) -> dict[str, Any]:
    """The options of a verb with a CONFIG: its experiment with the flags' fields replaced."""
    import tyro

    from user_llm.config import Experiment
    from user_llm.files import to_path

    default = load_config(config)

    def options(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
        run_dir: str = "",
        record: bool = False,
        seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
        profile_steps: Annotated[str, tyro.conf.arg(metavar="A:B")] = "",
    ) -> dict[str, Any]:
        """Every field of the experiment can be overridden.

        Args:
          experiment: what the config file describes
          run_dir: where everything is written; empty: runs/<name>
          record: adds the results to the config's results.json
          seeds: runs seeds 0 to N - 1, a folder for each, and shows their mean and spread
          profile_steps: traces steps A to B of each stage into its folder, for XProf
        """
        if seeds < 1:
            raise ValueError(f"--seeds {seeds} runs nothing; give 1 or more")
        begun = config if to_path(config).is_dir() else f"runs/{experiment.name}"
        folder = to_path(run_dir or begun)
        own = {"experiment": experiment, "folder": folder, "record": record, "seeds": seeds}
        return own | {"verb": verb, "config": config, "profiled": _steps(profile_steps)}

    return tyro.cli(
        options,
        args=flags,
        prog=f"user-llm {verb} {config}",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )


def _steps(said: str) -> range:
    """The steps that `A:B` means, both of them included; none of an empty text.

    Raises:
      ValueError: it is not of that form, or no step is between them.
    """
    if not said:
        return range(0)
    first, _, last = said.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise ValueError(f"--profile-steps {said} names no steps; write A:B, such as 10:15")
    return range(int(first), int(last) + 1)


def _launch_options(verb: str, config: str, flags: list[str]) -> dict[str, Any]:
    """The options of a launch, by the parser of its module, and the experiment with all others."""
    parser = _load(f"user_llm.launch.{verb.split()[1]}:parser")(f"user-llm {verb} CONFIG")
    own, overrides = parser.parse_known_args(flags)
    experiment = _experiment_options(verb, config, overrides)["experiment"]
    return vars(own) | {"experiment": experiment, "config": config, "overrides": overrides}


def _load(target: str) -> Callable[..., Any]:
    """The function that `module:name` stands for."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    sys.exit(main())
