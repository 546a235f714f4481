# Sourced by the scripts beside it, from the top of the repository: makes sure of a Python environment that has
# tvm_mpq in it, and of a linker. Needs nothing but Python 3.10 and Debian's base.

say() { echo "== $*" >&2; }

fail() {
    echo "error: $*" >&2
    exit 1
}

as_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_install() {
    say "installing $*"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

make_environment() {
    command -v python3 >/dev/null || fail "python3 is missing: apt-get install python3"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "Python 3.10 or later is needed"
    # Debian keeps the part of venv that installs pip in a package of its own.
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        as_root || fail "Python's venv is missing: apt-get install python3-venv"
        apt_install python3-venv
    fi
    say "making .venv"
    rm -rf .venv
    python3 -m venv .venv
}

# prepare EXTRA: an active environment is used as it is, else .venv is made; tvm_mpq[EXTRA] is installed in it.
prepare() {
    local extra="$1"
    if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
        [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 || make_environment
        # shellcheck source=/dev/null
        . .venv/bin/activate
    fi
    if ! command -v ld.lld >/dev/null && ! command -v ld >/dev/null && ! command -v cc >/dev/null; then
        if as_root; then
            apt_install binutils
        else
            say "no linker found, and only root can install binutils: taking the one in ziglang"
            extra="${extra:+$extra,}linker"
        fi
    fi
    say "installing tvm_mpq (the first time it downloads some 200 MB)"
    python -m pip install -q --disable-pip-version-check -e ".${extra:+[$extra]}"
}
