"""Strictness lives here: shapes checked, dtypes promoted by hand, eight simulated CPU devices."""

import atexit
import gc
import os
import shutil
import tempfile

# Before jax is imported; subprocesses and xdist's workers inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's threads: a collective holds one of each device, and with too few all can wait for others.
os.environ.setdefault("NPROC", "64")
# Tests compile much and compute little: cheaply, and once for all processes of a session.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        # Each process would compile some thousand modules again: half of a short one's time.
        os.environ["PYTHONPYCACHEPREFIX"] = f"{compiled}/bytecode"

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from jax.sharding import Mesh
from jaxtyping import install_import_hook

# Both take effect only before the backend starts and before the package is imported.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
install_import_hook("user_llm", "beartype.beartype")
settings.register_profile("unhurried", deadline=None)  # other work on the machine is no failure
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker waits long for another's last file."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """What is imported stays, and tracing makes few cycles: the collector need not look often."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A file's compiled programs go with it: all together take more mappings than Linux allows."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets and weights that $USER_LLM_DATA names; skips without it."""
    folder = os.environ.get("USER_LLM_DATA")
    if not folder:
        pytest.skip("reads real data: set USER_LLM_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory) -> Path:
    """A folder with a random BERT and a tokenizer of a few words."""
    import encoder_made

    return encoder_made.write_encoder(tmp_path_factory.mktemp("encoder"), encoder_made.WORDS)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """A real, small model that an OpenAI-compatible endpoint may answer with."""
    import chat_server

    return chat_server.Model(chat_server.write_model(tmp_path_factory.mktemp("chat_model")))


@pytest.fixture
def server(chat_model):
    """Such an endpoint, fresh."""
    import chat_server

    with chat_server.serve(chat_model) as made:
        yield made


@pytest.fixture(scope="session")
def redis_command(tmp_path_factory) -> list[str]:
    """What starts a Redis server."""
    import redis_made

    try:
        return redis_made.find(tmp_path_factory.mktemp("redis"))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"there is no redis-server, and Debian's package cannot be had: {error}")


@pytest.fixture
def redis_server(redis_command, tmp_path):
    """One, empty, that has on its disk what it acknowledges."""
    import redis_made

    with redis_made.Server(redis_command, tmp_path / "redis") as made:
        yield made


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """What starts a Chromium."""
    import chromium_made

    folder = tmp_path_factory.mktemp("chromium")
    try:
        yield chromium_made.find(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"there is no Chromium, and Debian's packages cannot be had: {error}")
    finally:
        shutil.rmtree(folder)  # it is large


@pytest.fixture(scope="session")
def made_export(tmp_path_factory) -> tuple:
    """A run and its export, the same for all workers."""
    import serving_made

    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    return serving_made.made_export(folder / "exports")


@pytest.fixture(scope="session")
def exported(made_export) -> Path:
    """An export's folder."""
    return made_export[1]


@pytest.fixture(scope="module")
def served(exported, tmp_path_factory):
    """A server of it, whose users are those of one file of tests."""
    import serving_made

    with serving_made.served(exported, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def mesh() -> Callable[..., Mesh]:
    """Makes a data x fsdp x tensor mesh over the first devices, as many as it needs."""
    from user_llm.config import MeshConfig
    from user_llm.sharding import make_mesh

    def make(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
        config = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
        return make_mesh(config, jax.devices()[: data * fsdp * tensor])

    return make
