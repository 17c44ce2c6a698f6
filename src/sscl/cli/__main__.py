"""python -m sscl.cli"""

import sys

from sscl.cli import main

sys.exit(main())
