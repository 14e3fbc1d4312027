"""`python -m parasample.cli`."""

import sys

from parasample.cli import main

sys.exit(main())
