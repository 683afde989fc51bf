"""Fine-tuning: M_P learns y_w from x, the improver M_PIT learns y_w from x and y_l (PIT, section 3.2)."""

from typing import Any

from flax import nnx

from pit.data.template import improver_sft, policy_sft
from pit.losses.sft import token_nll
from pit.losses.total import Total
from pit.model.adapters import with_dropout
from pit.model.heads import row_logprobs
from pit.model.params import Params, merge
from pit.run.stage import DECODER
from pit.stages.supervised import supervised_stage
from pit.train.update import Arrays, LossFunction


def nll(graphdef: nnx.GraphDef[Any]) -> LossFunction:
    """Return the mean negative log-likelihood of the tokens with weight, nats."""

    def loss(params: Params, batch: Arrays) -> tuple[Total, dict[str, Total]]:
        model = with_dropout(merge(graphdef, params), batch)
        logp = row_logprobs(
            model, batch["token"], batch["position"], batch["visible_until"], batch["previous"], temperature=1.0
        )
        return token_nll(logp, batch["loss_weight"]), {}

    return loss


POLICY = supervised_stage(
    name="sft-policy",
    title="M_P fine-tuned on x -> y_w",
    section="sft_policy",
    trains=DECODER,
    fold="sft",
    topology=policy_sft(),
    loss=lambda graphdef, config: nll(graphdef),
)

IMPROVER = supervised_stage(
    name="sft-improver",
    title="M_PIT fine-tuned on x, y_l -> y_w",
    section="sft_improver",
    trains=DECODER,
    fold="sft",
    topology=improver_sft(),
    loss=lambda graphdef, config: nll(graphdef),
    inputs=lambda config: {"start": POLICY} if config.sft_improver.init == "policy" else {},
)
