"""`python -m vllm_nb.cli`."""

import sys

from vllm_nb.cli import main

if __name__ == "__main__":
    sys.exit(main())
