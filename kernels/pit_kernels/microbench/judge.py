"""One process that judges one contender; started by `suite`, speaks JSON."""

import json
import sys

from jax.experimental.pallas import tpu as pltpu

from pit_kernels.microbench.contenders import judged
from pit_kernels.microbench.worker import named_contender


def main() -> None:
    """Read operation and contender from standard input, and write the first failure or null."""
    request = json.load(sys.stdin)
    contender = named_contender(request["operation"], request["contender"])
    if contender.needs_interpreter:
        with pltpu.force_tpu_interpret_mode():
            verdict = judged(contender)
    else:
        verdict = judged(contender)
    print(json.dumps({"failure": verdict.failure, "skipped": list(verdict.skipped)}))


if __name__ == "__main__":
    main()
