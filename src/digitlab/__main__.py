"""`python -m digitlab` is the `digitlab` command."""

import sys

from digitlab.cli import main

sys.exit(main())
