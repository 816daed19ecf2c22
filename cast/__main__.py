"""``python -m cast`` is the ``cast`` command."""

import sys

from cast.cli import main

sys.exit(main())
