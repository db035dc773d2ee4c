"""``python -m ladon_storage.cli``: the command where its script is not installed."""

import sys

from ladon_storage.cli import main

sys.exit(main())
