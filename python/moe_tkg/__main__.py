# SPDX-License-Identifier: Apache-2.0
"""``python -m moe_tkg`` is the command moe-tkg."""

import os
import sys

from ._config import tool


def main() -> None:
    path = tool()
    if path is None:
        sys.exit("moe-tkg: this package was built without the tool (MOE_BUILD_TOOLS)")
    sys.stdout.flush()
    os.execv(path, ["moe-tkg", *sys.argv[1:]])


if __name__ == "__main__":
    main()
