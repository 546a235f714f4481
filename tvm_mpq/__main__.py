"""``python -m tvm_mpq``: the same as the command ``tvm-mpq``."""

import sys

from tvm_mpq.cli import main

sys.exit(main())
