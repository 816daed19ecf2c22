"""``python -m cast_kernels`` is the command ``cast-kernels``."""

import sys

from cast_kernels.cli import main

sys.exit(main())
