"""``python -m vhost_user`` is the command ``vhost-user``."""

import sys

from .cli import main

sys.exit(main())
