"""What all of them have."""

PYPROJECT = """\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "A virtio device"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["vhost-user"]

[project.optional-dependencies]
test = ["pytest>=8"]

[tool.setuptools.package-data]
{module} = ["py.typed"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
"""

README = """\
# {name}

A virtio device in Python, served by [vhost-user](https://pypi.org/project/vhost-user/).

```console
$ pytest
$ vhost-user run src/{module}/device.py --help
$ vhost-user run src/{module}/device.py{settings} --socket-path {name}.sock
```

While it runs, `vhost-user snippet {name}.sock{type} --for qemu` prints what a virtual machine has
to be told to have it. Once it is installed (`pip install .`) the device is `{module}:{Class}` to
`run`.
"""

IGNORED = """\
__pycache__/
*.egg-info/
*.sock
.pytest_cache/
build/
dist/
"""

INIT = '''\
"""{name}: a virtio device."""

from .device import {Class} as {Class}

__all__ = ["{Class}"]
'''


def files(*, settings: str, type_option: str, device: str, test: str) -> dict[str, str]:
    """The files of a package. ``settings``: words behind ``run``, each with a space before it;
    ``type_option``: those behind ``snippet``, likewise."""
    readme = README.replace("{settings}", settings).replace("{type}", type_option)
    return {
        "pyproject.toml": PYPROJECT,
        "README.md": readme,
        ".gitignore": IGNORED,
        "src/{module}/__init__.py": INIT,
        "src/{module}/py.typed": "",
        "src/{module}/device.py": device,
        "tests/test_{module}.py": test,
    }
