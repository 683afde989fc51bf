"""Judges one backend of an operation: `python -m pit_kernels.conformance OPERATION BACKEND`.

Prints the verdict and exits with 1 where a case fails.
"""

import sys
from collections.abc import Sequence

from pit_kernels.conformance.operations import judge_backend
from pit_kernels.operations import BACKENDS


def main(words: Sequence[str]) -> None:
    """Judge the backend that the command line names."""
    if len(words) != 2 or words[0] not in BACKENDS:
        sys.exit(f"usage: python -m pit_kernels.conformance OPERATION BACKEND; operations: {', '.join(BACKENDS)}")
    operation, name = words
    backends = {backend.name: backend for backend in BACKENDS[operation]}
    if name not in backends:
        sys.exit(f"{operation} has no {name} backend; available: {', '.join(backends)}")
    verdict = judge_backend(operation, backends[name])
    skipped = f"; skipped: {', '.join(verdict.skipped)}" if verdict.skipped else ""
    print(f"{operation} {name}: {verdict.passed} cases passed{skipped}")
    if verdict.failure is not None:
        sys.exit(f"failed: {verdict.failure}")


if __name__ == "__main__":
    main(sys.argv[1:])
