"""`python -m robustly`."""

import sys

from robustly.cli import main

sys.exit(main())
