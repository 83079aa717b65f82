"""The verbs of a run: to judge it, to ask it, to give it away and to serve what was given."""

from user_llm.grammar.options import EVENTS, RUN, SET, Verbs, add, count, local, run


def evaluate(verbs: Verbs) -> None:
    sub = add(verbs, "evaluate", "score a run's model and its baselines on the test users")
    sub.add_argument("folder", type=run, metavar="RUN", help=RUN)


def report(verbs: Verbs) -> None:
    sub = add(verbs, "report", "write a run's report as one HTML page")
    told = f"{RUN} or a sweep, or a sweep's file, of the figures that are recorded beside it"
    sub.add_argument("folder", type=run, metavar="RUN", help=told)
    sub.add_argument("--png", action="store_true", help="draw a sweep's figures as PNGs too")
    told = "of a sweep's file: where the page is written: runs/<FILE's name>_recorded"
    sub.add_argument("--run-dir", type=local, help=told)


def predict(verbs: Verbs) -> None:
    sub = add(verbs, "predict", "recommend items to users, whom training need not have seen")
    sub.add_argument("folder", type=run, metavar="RUN", help=RUN)
    sub.add_argument("--events", type=local, metavar="FILE", required=True, help=EVENTS)
    count(sub, "--top", 10, "items a user", metavar="K")
    sub.add_argument("--out", type=local, metavar="FILE", help="JSON lines; shown if not given")


def embed(verbs: Verbs) -> None:
    text = "write what a run knows of all users, its own or others, to Parquet"
    sub = add(verbs, "embed", text)
    sub.add_argument("folder", type=run, metavar="RUN", help=RUN)
    sub.add_argument("--events", type=local, metavar="FILE", help=EVENTS)
    told = f"{SET}; the run's own if not given"
    sub.add_argument("data", type=local, metavar="DATASET", nargs="?", help=told)
    sub.add_argument("--out", type=local, metavar="DIR", required=True, help="a folder of shards")
    told = "the tokens that the fine-tuned decoder reads, not the encoder's vectors"
    sub.add_argument("--memory", action="store_true", help=told)


def export(verbs: Verbs) -> None:
    sub = add(verbs, "export", "write a run's system, or its users, as files for serving")
    sub.add_argument("folder", type=run, metavar="RUN", help=RUN)
    sub.add_argument("--out", type=local, metavar="DIR", required=True, help="a new folder")
    sub.add_argument(
        "--format",
        dest="form",
        choices=("huggingface", "stablehlo", "soft-prompt", "vectors"),
        default="huggingface",
        help="whole; as programs; users as prompt embeddings, or as a table (default: %(default)s)",
    )
    told = "which of the run's systems (default: %(default)s)"
    sub.add_argument("--system", default="user_llm", metavar="NAME", help=told)
    told = "LoRA beside the decoder, as PEFT reads it; not in it"
    sub.add_argument("--adapter", action="store_true", help=told)
    told = f"of soft-prompt and vectors: their users, {EVENTS}; the run's own if not given"
    sub.add_argument("--events", type=local, metavar="FILE", help=told)


def serve(verbs: Verbs) -> None:
    sub = add(verbs, "serve", "answer over HTTP, as OpenAI's API does, each user with his memory")
    told = "a folder that `user-llm export` wrote"
    sub.add_argument("export", type=local, metavar="EXPORT", help=told)
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
        sub.add_argument(flag, type=kind, default=default, metavar=shown, help=text)
    told = "compiles what answers take when they first take it"
    sub.add_argument("--cold", action="store_true", help=told)
    told = "lets whoever reaches the server ask without a key"
    sub.add_argument("--unlocked", action="store_true", help=told)
