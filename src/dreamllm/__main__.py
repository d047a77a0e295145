"""`python -m dreamllm`: on the job server where there is one, else here."""

import sys

from dreamllm.job_server import hand_over

hand_over(sys.argv[1:])

from dreamllm.cli import main  # noqa: E402  only here, so that a caller of the job server imports next to nothing

main()
