# DPDK's testpmd in a temporary folder. Sourced by scripts of the folder above, which then run Python
# with the module `testpmd` that stands beside this file.

lib=$(dirname "${BASH_SOURCE[0]}")
source "$lib/debian.sh"
export PYTHONPATH="$lib" PYTHONDONTWRITEBYTECODE=1

# Fetches and unpacks the version of `dpdk-dev` that is named.
install_dpdk() {
    local version=$1 libraries
    read_lists
    fetch_alone "dpdk-dev=$version"
    # All that the package depends on but its headers and its Python scripts' needs.
    libraries=$(dpkg-deb --field "$work"/apt/alone/dpdk-dev_*.deb Depends | tr ',' '\n' |
        awk '$1 != "libdpdk-dev" && $1 != "python3" { print $1 }')
    # shellcheck disable=SC2086
    fetch $libraries "librte-net-virtio23=$version" "librte-net-vhost23=$version"
    unpack
    echo "dpdk-dev $version"
}
