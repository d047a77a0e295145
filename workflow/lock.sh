#!/usr/bin/env bash
# Writes requirements.lock: what is installed and tested in .venv now, with the hashes of all its files on PyPI.
# torch stays out (it exists as a CPU and as a CUDA build, so it carries no hash), what torch needs is in.
# Usage: make lock
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet uv
.venv/bin/pip freeze --exclude-editable | grep -vi '^torch==' > "$work/installed.txt"
echo "torch==2.13.0; sys_platform == 'never'" > "$work/override.txt"
printf '%s\n' filelock fsspec jinja2 networkx setuptools sympy typing-extensions > "$work/torch-needs.in"
{
    echo '# Exact versions with hashes, written by `make lock`. Install as the Makefile does:'
    echo '#   pip install torch==2.13.0'
    echo '#   pip install --require-hashes --no-deps -r requirements.lock'
    echo '#   pip install --no-deps --no-build-isolation -e .'
    "$work/uv/bin/uv" pip compile pyproject.toml "$work/torch-needs.in" --extra test --extra demo \
        --python-version 3.11 --quiet \
        --override "$work/override.txt" --constraint "$work/installed.txt" \
        --generate-hashes --no-header --no-annotate
} > "$work/requirements.lock"
cp "$work/requirements.lock" requirements.lock
echo "requirements.lock: $(grep -c '==' requirements.lock) packages"
