# Packages of Debian 12's archive in a temporary folder. Sourced by scripts of the folder above.
#
# Sets `work`, the folder, which is removed at the end; what is unpacked stands in "$work/root".

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

unavailable() {
    echo "unavailable: $*"
    exit 77
}

# Reads the archive's lists into a private apt that believes nothing is installed, so that it names
# the C library too.
read_lists() {
    local tool
    for tool in apt-get dpkg-deb python3; do
        command -v "$tool" >/dev/null || unavailable "$tool"
    done
    [ "$(uname -m)" = x86_64 ] || unavailable "an x86-64 machine"
    mkdir -p "$work"/apt/{alone,lists,archives}/partial "$work/root"
    : >"$work/apt/status"
    cat >"$work/apt/conf" <<END
Dir::State::lists "$work/apt/lists";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt";
APT::Sandbox::User "$(id -un)";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Debug::NoLocking "true";
END
    export APT_CONFIG="$work/apt/conf" LC_ALL=C
    apt-get -qq update || unavailable "apt reaches no archive"
}

# Fetches these packages alone.
fetch_alone() {
    (cd "$work/apt/alone" && apt-get -qq download "$@") || unavailable "$*"
}

# Fetches these packages and all that they depend on.
fetch() {
    apt-get -qq --yes --download-only install "$@" >/dev/null || unavailable "$*"
}

# Unpacks all that was fetched.
unpack() {
    local package
    for package in "$work"/apt/{alone,archives}/*.deb; do
        [ ! -e "$package" ] || dpkg-deb --extract "$package" "$work/root"
    done
}
