# What scripts/test and scripts/quickstart share: find Python, install what is missing. Sourced, not run.

export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '==> %s\n' "$*" >&2; }

# quietly COMMAND... : what it prints is only of interest when it fails.
quietly() {
    local output status=0
    output=$("$@" 2>&1) || status=$?
    [ $status -eq 0 ] || printf '%s\n' "$output" >&2
    return $status
}

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$name"
            return
        fi
    done
    return 1
}

# install_system_packages PROGRAM:PACKAGE... : what is missing of them, and Python; as root through "${as_root[@]}",
# and only where $can_be_root is true.
install_system_packages() {
    local missing=() pair python
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    python=$(find_python) && "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    [ ${#missing[@]} -eq 0 ] && return
    if ! $can_be_root || ! command -v apt-get >/dev/null; then
        say "missing, and only root on Debian or Ubuntu can have them installed here: ${missing[*]}"
        return
    fi
    say "installing ${missing[*]}"
    quietly "${as_root[@]}" apt-get update -q
    quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# install_python_packages WHAT REQUIREMENT... : into .venv, once for each state of setup.cfg.
install_python_packages() {
    local what=$1 python stamp wanted
    shift
    stamp=.venv/installed-for-$what
    python=$(find_python) || { say "Python 3.11 or newer is needed"; exit 1; }
    wanted=$(cat setup.cfg setup.py | sha256sum)
    [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    say "installing Python packages into .venv"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || quietly "$python" -m venv --clear .venv
    quietly .venv/bin/python -m pip install --disable-pip-version-check "$@"
    echo "$wanted" >"$stamp"
}

# compile_once: b2s is started again and again, and where Python is told to write no bytecode (as root is below), each
# start would compile all of it.
compile_once() {
    .venv/bin/python -m compileall -qq b2s tests || true # it only saves time
}
