"""Fine-tuning: M_P learns y_w from x, the improver M_PIT learns y_w from x and y_l (PIT, section 3.2)."""

from typing import Any

from flax import nnx

from pit.data.template import improver_sft, policy_sft
from pit.losses.sft import token_nll
from pit.losses.total import Total
from pit.model.heads import row_logprobs
from pit.model.params import Params, copy, merge
from pit.stages.context import INITIAL, Run
from pit.stages.supervised import Task, fit
from pit.train.update import Arrays, LossFunction


def nll(graphdef: nnx.GraphDef[Any]) -> LossFunction:
    """Mean negative log-likelihood of the tokens with weight, nats."""

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        model = merge(graphdef, params)
        logp = row_logprobs(
            model, batch["token"], batch["position"], batch["visible_until"], batch["previous"], temperature=1.0
        )
        return token_nll(logp, batch["loss_weight"]), {}

    return loss


POLICY = Task("sft-policy", "sft", policy_sft(), nll)
IMPROVER = Task("sft-improver", "sft", improver_sft(), nll)


def run_sft(run: Run, task: Task, *, profile_steps: int = 0) -> None:
    """Fine-tune the policy or the improver: from fresh weights, or the improver from the fine-tuned policy's."""
    initial = None
    if task is IMPROVER and run.config.sft_improver.init == "policy":
        initial = copy(run.trained(INITIAL["policy"])[1])
    fit(run, task, initial=initial, profile_steps=profile_steps)
