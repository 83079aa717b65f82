#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Compiles a third faster on CPUs and runs as fast; constraints.txt pins an XLA that knows the flag.
export XLA_FLAGS=${XLA_FLAGS:---xla_cpu_use_fusion_emitters=false}
# Huge pages: a step's arrays are new memory each time, and page by page that is a fifth of it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

help() {
  cat <<'TEXT'
Sets the project up in .venv, then runs or checks it.

  bash launch/local.sh quickstart [ARGUMENT ...]   user-llm quickstart: train and judge a small model
  bash launch/local.sh test [ARGUMENT ...]         lint, then pytest
  bash launch/local.sh lint                        ruff and pyright
  bash launch/local.sh help                        this text

Only Python 3.11 or newer with pip is needed; PYTHON names another interpreter than python3. What
is installed are the versions of constraints.txt, again only when that file or pyproject.toml changes.
TEXT
}

fail() {
  echo "launch/local.sh: $*" >&2
  exit 1
}

make_venv() {
  local python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "needs Python 3.11 or newer, and $python is none; set PYTHON to one"
  echo "making .venv with $("$python" --version)" >&2
  # The interpreter's own pip installs pip: ensurepip's is old, and missing in some distributions.
  "$python" -m venv --clear --without-pip .venv &&
    "$python" -m pip --python .venv/bin/python install --quiet pip ||
    fail "cannot make .venv; $python needs its venv and pip (22.3 or newer) modules"
}

is_current() {
  cmp -s "$1" <(cat pyproject.toml constraints.txt)
}

# setup [EXTRA]: installs the package, editable; what `test` installed serves every command.
setup() {
  local stamp=.venv/installed-${1:-base}
  if ! is_current .venv/installed-test && ! is_current "$stamp"; then
    .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv
    echo "installing user-llm${1:+[$1]}" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
      --constraint constraints.txt --editable ".${1:+[$1]}"
    cat pyproject.toml constraints.txt >"$stamp"
  fi
  export PATH="$PWD/.venv/bin:$PATH"
}

lint() {
  ruff check .
  ruff format --check .
  PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright # else it looks for a newer release
}

command=${1:-help}
shift || true
case $command in
  quickstart)
    setup
    user-llm quickstart "$@"
    ;;
  test)
    setup test
    lint
    export XLA_FLAGS="$XLA_FLAGS --xla_cpu_parallel_codegen_split_count=1" # workers fill the cores
    # One worker more than processors, since some tests wait for processes of theirs. Where a worker
    # crashes, xdist would wait for ever for what is left of its file.
    workers=$(($(getconf _NPROCESSORS_ONLN) + 1))
    pytest --numprocesses "$workers" --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
    ;;
  lint)
    setup test
    lint
    ;;
  help | -h | --help) help ;;
  *) fail "unknown command $command; see bash launch/local.sh help" ;;
esac
