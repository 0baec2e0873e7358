"""Runs in a clean system, with nothing but an interpreter: installs the package as a user would,
runs its demo and a test of a user's device. The last line that it prints is JSON.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

GIVEN = Path("/given")
PLACE = Path("/tmp/try")
DEMO = ["demo", "--size", "8M"]


def run(*command: str) -> str:
    """What a command prints; if it fails, that is the end."""
    done = subprocess.run(
        command, cwd=PLACE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print("$", *command, "\n" + done.stdout, flush=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}")
    return done.stdout


def main() -> None:
    """Does what a user does, and says what was seen."""
    PLACE.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", "venv")
    python, command = f"{PLACE}/venv/bin/python", f"{PLACE}/venv/bin/vhost-user"
    (pip,) = GIVEN.glob("pip-*.whl")
    offline = ["--no-index", "--find-links", str(GIVEN), "--disable-pip-version-check"]
    run(python, f"{pip}/pip", "install", *offline, "vhost-user", "pytest")
    demo = run(command, *DEMO)
    for name in ("ram.py", "test_ram.py"):
        (PLACE / name).write_bytes((GIVEN / name).read_bytes())
    test = run(python, "-m", "pytest", "-q", "test_ram.py")
    wheel = next(PLACE.glob("venv/lib/python*/site-packages/vhost_user-*.dist-info/WHEEL"))
    tags = [line.split()[1] for line in wheel.read_text().splitlines() if line.startswith("Tag:")]
    said = {
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "tags": tags,
        "demo": demo.strip().splitlines()[-1],
        "test": test.strip().splitlines()[-1],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
