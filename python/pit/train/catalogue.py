"""Every metric that a stage logs, under the names that TRL's users know: its unit and its meaning.

The site's page of metrics is made from this table. Under `eval/` stand the same metrics of held-out examples.
"""

from typing import Literal, NamedTuple

EVERY, SUPERVISED, RL = "every stage", "supervised stages", "RL stages"
REWARD, GAP, IMPROVER, FUNCTION = "reward models", "the gap model", "the improver's RL stages", "runs with `--reward`"
CLIPPED, SCALED = "RL stages with `algorithm=clipped`", "RL stages with `reward.scale=log_odds`"

Unit = Literal["nats", "tokens", "share", "score", "number", "seconds", "tokens/s"]


class Metric(NamedTuple):
    """A metric: its name in `metrics.jsonl`, who logs it, its unit, and its meaning in a phrase.

    "score" is the scale of the stage's reward. deep: logged every `board.every` steps.
    """

    name: str
    stages: str
    unit: Unit
    meaning: str
    deep: bool = False


METRICS = (
    Metric("loss", EVERY, "nats", "loss of the step: per token in fine-tuning, per tree in other stages"),
    Metric("grad_norm", EVERY, "number", "norm of the gradient, before it is clipped"),
    Metric("refused", EVERY, "share", "steps whose loss or gradient was not finite, so that no weight changed"),
    Metric("perf/fill", EVERY, "share", "slots of the rows that hold a token, not padding"),
    Metric("perf/data_wait_s", EVERY, "seconds", "wait for data, per step"),
    Metric("perf/tokens_per_s", SUPERVISED, "tokens/s", "tokens trained on, without padding"),
    Metric("accuracy", REWARD, "share", "pairs in the right order; of the gap model, (w,l) above (l,w)"),
    Metric("accuracy/wl_over_ww", GAP, "share", "trees that rank (w,l) above (w,w)"),
    Metric("accuracy/ll_over_lw", GAP, "share", "trees that rank (l,l) above (l,w)"),
    Metric(
        "rewards/margin",
        f"{GAP}, {IMPROVER}",
        "score",
        "score of (w,l) less that of (l,w); in RL the gap of the answer over its reference (not with raw gaps, which "
        "have no zero)",
    ),
    Metric("objective/reward", RL, "score", "score of the reward, unchanged"),
    Metric("objective/rlhf_reward", RL, "score", "shaped reward, from which advantages are computed"),
    Metric(
        "objective/non_score_reward",
        RL,
        "score",
        "shaped reward less the score (in the running scale): penalties and KL",
    ),
    Metric("objective/kl", RL, "nats", "KL to the anchor by k1, whichever estimator is charged; per answer"),
    Metric("objective/kl_penalty", RL, "nats", "KL by the charged estimator, per answer"),
    Metric("objective/kl_coef", RL, "number", "beta of this step"),
    Metric("objective/entropy", RL, "nats", "-log p(answer), whose mean is the entropy of whole answers"),
    Metric("rewards/std", RL, "score", "standard deviation of the scores of a tree's samples"),
    Metric("rewards/zero_std_ratio", RL, "share", "trees whose samples all have the same score and so teach nothing"),
    Metric("rewards/accuracy", IMPROVER, "share", "answers that beat their reference (not with raw gaps)"),
    Metric("rewards/model", FUNCTION, "score", "mean score of the reward model, before its weight"),
    Metric("rewards/function", FUNCTION, "score", "mean score of your function, before its weight"),
    Metric("rewards/model_std", FUNCTION, "score", "spread of the model's scores within a tree"),
    Metric("rewards/function_std", FUNCTION, "score", "spread of your function's scores within a tree"),
    Metric("rewards/agreement", FUNCTION, "share", "pairs of siblings that model and function rank alike"),
    Metric("rewards/scale", SCALED, "number", "factor of the reward model's scores"),
    Metric(
        "policy/approxkl_avg",
        CLIPPED,
        "nats",
        "KL of the rollout's policy to the one that an update starts from, by k3, per answer",
    ),
    Metric("policy/clipfrac_avg", CLIPPED, "share", "tokens (or answers) whose gradient the clip range makes 0"),
    Metric(
        "policy/updates",
        CLIPPED,
        "number",
        "updates of a rollout; fewer than epochs x minibatches where `clip.kl_limit` ended them",
    ),
    Metric("completions/mean_length", RL, "tokens", "length of an answer, EOS included"),
    Metric("completions/min_length", RL, "tokens", "length of the shortest answer"),
    Metric("completions/max_length", RL, "tokens", "length of the longest answer"),
    Metric("completions/clipped_ratio", RL, "share", "answers that were cut off at the window"),
    Metric("rollout/slot_fill", RL, "share", "decode steps of the sampler that a sample used"),
    Metric(
        "rollout/logp_gap_nats_mean", RL, "nats", "mean difference of a token's log-prob between trainer and sampler"
    ),
    Metric("rollout/logp_gap_nats_max", RL, "nats", "largest such difference"),
    Metric("rollout/copy_rate", IMPROVER, "share", "answers equal to their reference, token by token"),
    Metric(
        "board/similarity",
        IMPROVER,
        "share",
        "mean of 1 - Levenshtein distance / length of the longer one, in tokens, between answer and reference",
        deep=True,
    ),
    Metric("board/similar_share", IMPROVER, "share", "answers whose similarity is above `board.similar`", deep=True),
    Metric(
        "board/length_reward_within",
        RL,
        "number",
        "correlation of length and score among siblings, which is what moves a policy",
    ),
    Metric("board/length_reward_across", RL, "number", "the same correlation between the means of trees"),
    Metric(
        "board/repeated_ngrams", RL, "share", "n-grams of an answer (`board.ngram`) that occur in it earlier", deep=True
    ),
    Metric(
        "board/distinct_ngrams",
        RL,
        "share",
        "distinct n-grams in the step: low if all prompts get one answer",
        deep=True,
    ),
    Metric("board/reward_p05", RL, "score", "5 % quantile of the scores"),
    Metric("board/reward_p25", RL, "score", "25 % quantile"),
    Metric("board/reward_p50", RL, "score", "median"),
    Metric("board/reward_p75", RL, "score", "75 % quantile"),
    Metric("board/reward_p95", RL, "score", "95 % quantile"),
    Metric("board/kl_speed_nats", RL, "nats", "change of the KL per step, smoothed (`board.smoothing`)"),
    Metric("board/gold", RL, "number", "mean gold score of the samples", deep=True),
    Metric("board/gold_gain", IMPROVER, "number", "the same less the gold score of their references", deep=True),
    Metric(
        "board/gold_agreement", RL, "share", "siblings with unequal gold that the score ranks like the gold", deep=True
    ),
)
