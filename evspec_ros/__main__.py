"""`python -m evspec_ros` is the command `evspec`."""

from __future__ import annotations

import sys

from evspec_ros.cli import main

sys.exit(main())
