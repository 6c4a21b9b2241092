"""The helpers beside these tests are modules that new processes import too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
