"""The stub of the extension module says what is in it."""

import subprocess
import sys


def test_the_stub_and_the_module_agree() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "vhost_user._core"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
