"""``python -m amorsize``: the same as the command ``amorsize``."""

from amorsize.cli import main

raise SystemExit(main())
