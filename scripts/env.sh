# Functions shared by the scripts.
# The environment is .venv, made with $PYTHON (default: python3).

# show_help "$@": where the first argument asks for help, prints the comment at the head of the script and ends it.
show_help() {
    case "${1:-}" in
        -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
    esac
}

# ensure_venv EXTRA...: makes .venv and installs requirements.txt and the named extras of pyproject.toml into it.
# A stamp file remembers what was installed, so that a second run needs neither time nor network.
ensure_venv() {
    local stamp wanted
    stamp=".venv/.installed-$(IFS=-; echo "$*")"
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    wanted=$(.venv/bin/python - requirements.txt pyproject.toml <<'EOF'
import hashlib, pathlib, sys
print(sys.version_info[:2], hashlib.sha256(b"".join(pathlib.Path(name).read_bytes() for name in sys.argv[1:])).hexdigest())
EOF
    )
    if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
        return
    fi
    .venv/bin/python - "$@" > .venv/extras.txt <<'EOF'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print(*(requirement for name in sys.argv[1:] for requirement in extras[name]), sep="\n")
EOF
    .venv/bin/python -m pip install -r requirements.txt -r .venv/extras.txt
    echo "$wanted" > "$stamp"
}
