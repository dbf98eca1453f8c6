#!/bin/sh
# Makes .venv with everything in it.  Called by make; PYTHON and TORCH come from there.
#
# petlib and libp2p's fastecdsa are built from source, so a C compiler and the headers of Python, OpenSSL and GMP are
# needed.  What is missing is installed where that is possible without a question (root, or sudo without a password);
# else one line says what to run.
set -eu

: "${PYTHON:=python3}" "${TORCH:=torch}" "${VENV:=.venv}"

fail() { printf '%s\n' "setup: $*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null 2>&1 || missing_python=yes

missing_packages() {
    # The names are Debian's; each is asked for by what it gives, so an own build of Python or OpenSSL serves as well.
    missing=
    if [ "${missing_python:-no}" = yes ]; then
        missing="python3 python3-venv python3-dev"
    else
        "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
        "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || missing="$missing python3-dev"
    fi
    compiler=${CC:-cc}
    command -v "$compiler" >/dev/null 2>&1 || compiler=gcc
    if ! command -v "$compiler" >/dev/null 2>&1; then
        missing="$missing gcc libc6-dev libssl-dev libgmp-dev"
    else
        printf '#include <stdlib.h>\n' | "$compiler" -E - >/dev/null 2>&1 || missing="$missing libc6-dev"
        printf '#include <gmp.h>\n' | "$compiler" -E - >/dev/null 2>&1 || missing="$missing libgmp-dev"
        printf '#include <openssl/ec.h>\n' | "$compiler" -E - >/dev/null 2>&1 || missing="$missing libssl-dev"
    fi
    printf '%s' "${missing# }"
}

packages=$(missing_packages)
if [ -n "$packages" ]; then
    line="apt-get update && apt-get install -y --no-install-recommends $packages"
    command -v apt-get >/dev/null 2>&1 ||
        fail "missing, by their Debian names: $packages.  Install what your system calls them, then run make again."
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root=sudo
    else
        fail "missing: $packages.  Run this, then make again:
    sudo sh -c '$line'"
    fi
    echo "setup: installing $packages"
    $as_root sh -c "export DEBIAN_FRONTEND=noninteractive; $line" ||
        fail "apt-get could not install: $packages"
    missing_python=no
    command -v "$PYTHON" >/dev/null 2>&1 || fail "$PYTHON is not there; set PYTHON to a Python of 3.11 or newer"
    packages=$(missing_packages)
    [ -z "$packages" ] || fail "still missing after apt-get: $packages; is PYTHON=$PYTHON the one that they are for?"
fi

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$PYTHON is $("$PYTHON" --version 2>&1), but 3.11 or newer is needed; try: make PYTHON=python3.12"

# A half-made environment has no stamp beside it, and one of another Python cannot be repaired.
if [ -x "$VENV/bin/python" ] && ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$VENV"
fi
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" || fail "$PYTHON cannot make a virtual environment"

# torch first and by its exact version: left to the resolver, another package's wish may bring a build with gigabytes of
# CUDA.  The stand-in for msgpack-python in the same command as petlib, which asks for it (docs/adr/0001-msgpack.md).
# --use-pep517: without it, an older pip lets petlib fetch its own build requirements, and misses one of them.
"$VENV/bin/python" -m pip install --disable-pip-version-check "$TORCH"
"$VENV/bin/python" -m pip install --disable-pip-version-check --use-pep517 ./packaging/msgpack-python -e '.[dev]'

# What aggregation is compared with in tests/learning/oracle.py.  Apart from everything else, and without what it depends
# on: that would replace torch.
"$VENV/bin/python" -m pip install --disable-pip-version-check --no-deps --upgrade --target "$VENV/oracle" byzfl==0.0.11

"$VENV/bin/python" -c 'from p2pdfl.base import preflight; preflight.check()'
