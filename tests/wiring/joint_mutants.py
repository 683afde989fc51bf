"""Wrong wirings of the method, each a small change of the real code, with the test that is to catch it.

docs/studies/wiring-mutants.md shows this table. The file is longer than 400 lines because it is one list.
"""

import contextlib
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from pit import pipeline
from pit.data import loader as loading
from pit.data import packing
from pit.data.chat import cut as cutting
from pit.evaluate import gold, measure, sensitivity
from pit.evaluate import splits as splitting
from pit.improve import Models, pool
from pit.improve import record as recording
from pit.improve import rounds as searching
from pit.model.model import Model
from pit.rl import clipped, metrics, readings, records, references, rloo, shaping
from pit.rl import reward as rewards
from pit.rl import step as steps
from pit.rollout import sample as sampling
from pit.rollout import score as scoring
from pit.run import session as sessions
from pit.run import stage as stages
from pit.serve import answers as serving
from pit.serve import batcher as batching
from pit.stages import graph, offline, refresh, reinforced, reward, rl, rl_again, rl_iterated, sft, supervised
from pit.types import Closings


class Mutant(NamedTuple):
    """A wrong wiring: its joint, what is wrong, the test that is to catch it, and how to make it."""

    joint: str
    what: str
    caught_by: str
    patch: Callable[[], Any]


def rewritten(owner: Any, name: str, old: str, new: str) -> Callable[[], Any]:
    """Return a patch of a function or method, in whose source one piece of text is another.

    Its code is exchanged in place, so that whoever has imported it, or holds it, has the wrong one.

    Args:
        owner: module or class.
        name: name in it.
        old: text that stands there once.
        new: text in its place.
    """

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        function = inspect.unwrap(inspect.getattr_static(owner, name))
        source, real = textwrap.dedent(inspect.getsource(function)), function.__code__
        assert source.count(old) == 1, f"{name}: {old!r} stands {source.count(old)} times; adapt the mutant to the code"
        scope: dict[str, Any] = {}
        exec(source.replace(old, new), sys.modules[function.__module__].__dict__, scope)
        function.__code__ = inspect.unwrap(scope[name]).__code__
        try:
            yield
        finally:
            function.__code__ = real

    return patch


def changed(stage: Any, **fields: Any) -> Callable[[], Any]:
    """Return a patch of the fields of a stage; `inputs` are roles to replace, the others are as they are."""

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        real = {name: getattr(stage, name) for name in fields}
        values = dict(fields)
        if "inputs" in values:
            roles = values["inputs"]
            values["inputs"] = lambda config: {**real["inputs"](config), **roles}
        for name, value in values.items():
            object.__setattr__(stage, name, value)
        try:
            yield
        finally:
            for name, value in real.items():
                object.__setattr__(stage, name, value)

    return patch


def loaded(change: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return a patch of the loader of supervised stages, whose tree has other segments."""
    real = supervised.Loader

    def loader(fold: Any, topology: Any, *rest: Any, **options: Any) -> Any:
        segments = tuple(map(change, topology.segments))
        return real(fold, dataclasses.replace(topology, segments=segments), *rest, **options)

    return lambda: mock.patch.object(supervised, "Loader", loader)


def shaped(change: Callable[..., Any]) -> Callable[[], Any]:
    """Return a patch of the shaped reward: a function of (its own, score, KL, finished, length, options)."""

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        real = shaping.shaped_reward

        def other(*columns: Any, **options: Any) -> Any:
            return change(real, *columns, options)

        shaping.shaped.clear_cache()
        with mock.patch.object(shaping, "shaped_reward", other):
            yield
        shaping.shaped.clear_cache()

    return patch


def swapped_columns(segment: Any) -> Any:
    return segment._replace(column={0: 0, 1: 2, 2: 1}[segment.column])


def swapped_sides() -> Any:
    real = scoring.symmetric_gap
    return mock.patch.object(scoring, "symmetric_gap", lambda raw, other: real(other, raw))


def weighed(change: Callable[[Any, Any], None]) -> Callable[[], Any]:
    """Return a patch of packing, which changes the loss weights of a batch under its closings."""
    real = loading.materialise_local

    def materialise(plan: Any, first: int, shards: Any, table: Any, topology: Any, layout: Any) -> Any:
        batch = real(plan, first, shards, table, topology, layout)
        change(batch.local, layout.closings)
        return batch

    return lambda: mock.patch.object(loading, "materialise_local", materialise)


def closed(old: str, new: str) -> Callable[[], Any]:
    """Return a patch of the closings of a tree; the core's topologies, which hold them, are made again."""
    real = rewritten(Closings, "of", old, new)

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        packing.core_topology.cache_clear()
        with real():
            yield
        packing.core_topology.cache_clear()

    return patch


def no_loss_at_eos(batch: Any, closings: Any) -> None:
    batch.loss_weight[batch.token == closings.eos] = 0


def loss_at_closings(batch: Any, closings: Any) -> None:
    batch.loss_weight[batch.token == closings.reference[0]] = 1


ROLES = "test_wiring_roles"
IMPROVE = "test_wiring_improve"
EVALUATION = "test_wiring_evaluation"
SEEDS = "test_wiring_seeds"
STEP = "test_wiring_step"
CLIPPED = "test_wiring_clipped"
REFERENCES = "test_wiring_references"
RESUME = "test_wiring_resume"
CHAT = "test_wiring_chat"

OFFLINE = f"{ROLES}.test_offline_rivals_learn_both_answers_of_a_pair_against_the_model_that_they_start_from"
INPUTS = f"{ROLES}.test_every_stage_names_its_inputs_by_role"
MODELS = f"{ROLES}.test_stages_use_the_models_of_their_roles"
TREES = f"{ROLES}.test_supervised_stages_train_on_trees_of_their_fold"
PROMPTS = f"{ROLES}.test_rl_stages_draw_prompts_of_the_rl_fold_and_measure_on_the_eval_fold"
WAITS = f"{ROLES}.test_a_stage_waits_for_its_inputs_its_gate_and_its_gold"
REPLACES = f"{IMPROVE}.test_a_candidate_replaces_the_answer_before_it_if_its_gap_exceeds_the_threshold"
METHODS = f"{EVALUATION}.test_each_method_is_of_the_models_that_its_name_says"
ACCURACIES = f"{EVALUATION}.test_accuracies_are_of_the_eval_fold_with_the_better_answer_first"
OF_A_STAGE = f"{SEEDS}.test_steps_references_and_samples_of_a_stage_have_seeds_of_their_own"
FORM = f"{STEP}.test_scores_have_the_form_that_the_config_says"
BY_HAND = f"{STEP}.test_rewards_and_advantages_are_those_worked_out_by_hand"
ROWS = f"{STEP}.test_log_probs_kl_and_loss_are_those_of_separate_rows"
DRAWS = f"{RESUME}.test_draws_resume_at_the_step_of_the_checkpoint"
STATES = f"{RESUME}.test_controllers_and_board_resume_with_the_same_values"
LOADERS = f"{RESUME}.test_supervised_stages_resume_with_the_next_step_of_their_loader"

ADAPTED = "test_wiring_adapters"
TRAINS_ADAPTERS = f"{ADAPTED}.test_adapters_and_heads_alone_train"
SHARES_BASE = f"{ADAPTED}.test_all_models_of_a_stage_share_one_base"
ADAPTED_ROLES = f"{ADAPTED}.test_stages_use_the_adapters_of_their_roles"
DROPOUTS = f"{ADAPTED}.test_every_microbatch_drops_inputs_of_its_own"
SAID = f"{CHAT}.test_supervised_trees_are_the_conversations_of_their_rows"
LEARNED = f"{CHAT}.test_loss_is_on_the_answer_and_its_eos_alone"
SERVED = f"{CHAT}.test_policy_and_improver_read_the_conversation_as_it_is_served"

SEARCHED = "test_wiring_search"
PLAIN_SEARCH = f"{SEARCHED}.test_a_search_is_the_plain_one"
RANKED = f"{SEARCHED}.test_ranks_by_hand"
CHOSEN = f"{SEARCHED}.test_the_split_of_most_worth_is_chosen_and_the_simplest_at_ties"
OWN_NUMBERS = f"{SEARCHED}.test_no_two_answers_of_a_search_share_their_random_numbers"

TASK = reinforced.RlTask
READ_AGAIN = (
    '[{**arrays, "rollout_logp": self.models.read(state.params, scored.trees, len(rows) - 1).logp[: len(slots)]} '
    "for arrays, slots in zip(minibatch.arrays, minibatch.examples)],"
)
"""Code that reads the rollout under the weights of the moment."""

SEARCHES = searching._State

FOLDS = (
    Mutant("fold", "RL,0 trains on the eval fold", PROMPTS, changed(rl.IMPROVER_0, fold="eval")),
    Mutant("fold", "R_PIT trains on the rl fold", TREES, changed(reward.GAP, fold="rl")),
    Mutant("fold", "the judge trains on the fold of R_P", TREES, changed(reward.JUDGE, fold="reward")),
    Mutant(
        "fold",
        "held-out losses are of the training fold",
        f"{ROLES}.test_held_out_measures_are_of_the_eval_fold_alone",
        rewritten(supervised, "fold_batches", 'run.fold("eval")', "run.fold(stage.fold)"),
    ),
    Mutant("fold", "held-out prompts of RL are of the rl fold", PROMPTS, rewritten(TASK, "evaluate", '"eval"', '"rl"')),
    Mutant(
        "fold",
        "results are measured on prompts of the rl fold",
        f"{EVALUATION}.test_methods_answer_prompts_of_the_eval_fold",
        rewritten(measure, "answer_all", 'run.fold("eval")', 'run.fold("rl")'),
    ),
    Mutant(
        "fold",
        "accuracies are measured on the fold of R_P",
        ACCURACIES,
        rewritten(measure, "model_accuracies", 'run.fold("eval")', 'run.fold("reward")'),
    ),
    Mutant(
        "fold",
        "the gate asks about pairs of the reward models' own fold",
        f"{ROLES}.test_the_gate_asks_the_reward_models_of_the_data_about_the_eval_fold",
        rewritten(sensitivity, "held_out_pairs", 'run.fold("eval")', 'run.fold("reward")'),
    ),
    Mutant(
        "fold",
        "reward models are refreshed on eval prompts",
        f"{RESUME}.test_labels_put_the_better_answer_first",
        rewritten(refresh, "make_pairs", 'run.fold("rl")', 'run.fold("eval")'),
    ),
)

TREE = (
    Mutant("tree", "fine-tuning learns the worse answer", TREES, loaded(swapped_columns)),
    Mutant(
        "tree",
        "the improver learns its reference too",
        f"{ROLES}.test_fine_tuning_learns_the_better_answer_alone",
        loaded(lambda segment: segment._replace(loss=segment.parent >= 0)),
    ),
)

ROLE = (
    Mutant(
        "role", "references of RL,1 are M_P's", INPUTS, changed(rl_iterated.IMPROVER_1, inputs={"writer": sft.POLICY})
    ),
    Mutant("role", "more RLHF starts anew", INPUTS, changed(rl_again.POLICY_AGAIN, inputs={"start": sft.POLICY})),
    Mutant(
        "role",
        "re-anchored RLHF keeps its anchor",
        INPUTS,
        rewritten(rl, "policy_inputs", 'sft.POLICY if settings.anchor == "sft" else start', "sft.POLICY"),
    ),
    Mutant(
        "role", "DPO's anchor is the policy of RLHF", OFFLINE, changed(offline.POLICY, inputs={"anchor": rl.POLICY})
    ),
    Mutant(
        "role", "SRPO's improver starts as a policy", OFFLINE, changed(offline.IMPROVER, inputs={"start": sft.POLICY})
    ),
    Mutant(
        "fold",
        "DPO sees other pairs than R_P",
        f"{ROLES}.test_supervised_stages_train_on_trees_of_their_fold",
        changed(offline.POLICY, fold="sft"),
    ),
    Mutant(
        "method",
        "SRPO's passes are the improver's",
        f"{EVALUATION}.test_offline_rivals_answer_as_the_policy_and_as_the_improver_of_its_answers",
        rewritten(measure, "answer_all", "replace(models, improver=offline.IMPROVER.load(run))", "models"),
    ),
    Mutant("role", "the improver's anchor is M_P", INPUTS, changed(rl.IMPROVER_0, inputs={"anchor": sft.POLICY})),
    Mutant(
        "role", "RL,1 starts from fine-tuning", INPUTS, changed(rl_iterated.IMPROVER_1, inputs={"start": sft.IMPROVER})
    ),
    Mutant(
        "role",
        "RL,2's references are rewritten by RL,0",
        INPUTS,
        changed(rl_iterated.IMPROVER_2, inputs={"rewriter": rl.IMPROVER_0}),
    ),
    Mutant("role", "the judge is maximised", INPUTS, changed(rl.POLICY, inputs={"reward": reward.JUDGE})),
    Mutant(
        "role",
        "R_P and R_PIT are swapped",
        INPUTS,
        rewritten(rl, "improver_inputs", '== "difference"', '!= "difference"'),
    ),
    Mutant(
        "role",
        "anchor=init is ignored",
        INPUTS,
        rewritten(rl, "improver_inputs", 'settings.anchor == "sft"', "True"),
    ),
    Mutant(
        "role",
        "the step's anchor is the weights that it starts from",
        MODELS,
        rewritten(reinforced, "make_step", 'models["anchor"].params', 'models["start"].params'),
    ),
    Mutant(
        "role",
        "the step's writer is its rewriter",
        MODELS,
        rewritten(reinforced, "make_step", 'models.get("writer")', 'models.get("rewriter") or models.get("anchor")'),
    ),
    Mutant(
        "role",
        "refreshed reward models are not used",
        f"{ROLES}.test_refreshed_models_are_the_last_ones_only_where_the_run_refreshes_them",
        rewritten(refresh, "last_gap", "GAP if GAP.included(config) else reward.GAP", "reward.GAP"),
    ),
    Mutant(
        "role",
        "inference improves with RL,0's improver",
        f"{IMPROVE}.test_the_models_of_an_improvement_are_the_last_of_the_run",
        rewritten(graph, "improver_of", "[-1]", "[0]"),
    ),
    Mutant(
        "role",
        "a start is ignored",
        f"{ROLES}.test_supervised_stages_start_from_the_weights_that_their_config_names",
        rewritten(supervised, "initial_model", 'get("start")', 'get("anchor")'),
    ),
    Mutant(
        "role",
        "hashes ignore the inputs",
        f"{ROLES}.test_a_hash_changes_exactly_where_an_input_does",
        rewritten(stages.Stage, "hash", "self.inputs(config).items()", "()"),
    ),
    Mutant(
        "order",
        "the gate is skipped",
        WAITS,
        rewritten(
            pipeline,
            "needs_of",
            "gated = isinstance(job, Stage) and job.maximises(config) and GATE.included(config)",
            "gated = False",
        ),
    ),
    Mutant("order", "labelled pairs are not waited for", WAITS, changed(refresh.GAP, after=lambda config: ())),
    Mutant("order", "the judge of the board is not waited for", WAITS, changed(rl.IMPROVER_0, after=lambda config: ())),
)

REFERENCE = (
    Mutant(
        "reference",
        "sources are ignored",
        f"{ROLES}.test_references_come_from_the_sources_that_the_config_weighs",
        rewritten(references.References, "__call__", "sources == Source.WORSE", "sources > 0"),
    ),
    Mutant(
        "reference",
        "the last pass is left out",
        f"{ROLES}.test_rewritten_references_went_through_the_improver_of_the_stage_before",
        rewritten(references.References, "_rewritten", "int(count.max()) + 1", "int(count.max())"),
    ),
    Mutant(
        "reference",
        "the worst draft is the reference",
        f"{REFERENCES}.test_the_reference_is_the_best_of_the_drafts_by_the_quality_model",
        rewritten(references.References, "_written", "argmax(axis=1)", "argmin(axis=1)"),
    ),
    Mutant(
        "reference",
        "R_PIT chooses the draft",
        f"{REFERENCES}.test_the_reference_is_the_best_of_the_drafts_by_the_quality_model",
        rewritten(rl, "improver_inputs", 'inputs["ranker"] = quality', 'inputs["ranker"] = gap'),
    ),
    Mutant(
        "reference",
        "a pass is compared with itself before it",
        f"{REFERENCES}.test_a_pass_is_kept_only_beyond_the_threshold_of_the_gap",
        rewritten(
            references.References, "_rewritten", "(inputs, written, [once_more])", "(inputs, once_more, [written])"
        ),
    ),
    Mutant(
        "reference",
        "the threshold of passes is ignored",
        f"{REFERENCES}.test_a_pass_is_kept_only_beyond_the_threshold_of_the_gap",
        rewritten(references.References, "_rewritten", "gap > self._passes.threshold", "gap > -np.inf"),
    ),
    Mutant(
        "reference",
        "the share of own answers is ignored",
        f"{REFERENCES}.test_own_answers_have_their_share_of_the_policys",
        rewritten(references.References, "_rewritten", "self._own_share < 1", "self._own_share < 0"),
    ),
    Mutant(
        "reference",
        "samples have their reference in the place of a peer",
        f"{REFERENCES}.test_samples_are_scored_over_one_of_their_peers",
        rewritten(steps.RlStep, "collect", 'self.config.against == "peer"', "False"),
    ),
    Mutant(
        "reference",
        "the temperature of references is ignored",
        f"{ROLES}.test_references_are_sampled_at_their_own_temperature",
        rewritten(
            references.References, "__init__", "config.temperature if given is None else given", "config.temperature"
        ),
    ),
    Mutant(
        "reference",
        "samples are scored against another prompt's",
        FORM,
        rewritten(
            steps.RlStep,
            "collect",
            "prompts.inputs, prompts.references, rollout.outputs",
            "prompts.inputs, prompts.references.take([1, 2, 3, 0]), rollout.outputs",
        ),
    ),
    Mutant(
        "reference",
        "copies are counted against another prompt's",
        f"{STEP}.test_copies_are_counted_against_the_reference_of_the_same_prompt",
        rewritten(metrics, "metrics", "column.equal(references)", "column.equal(references.take([1, 2, 3, 0]))"),
    ),
    Mutant(
        "reference",
        "a wrong reference is the right one",
        METHODS,
        rewritten(measure, "answer_all", "first.take([*requests[1:], *requests[:1]])", "first"),
    ),
    Mutant(
        "reference",
        "copies of a wrong reference are counted against the right one",
        f"{EVALUATION}.test_copies_are_counted_against_the_reference_that_was_read",
        rewritten(measure, "copy_rates", "references[1:] + references[:1]", "references"),
    ),
)

SEED = (
    Mutant(
        "seed",
        "references and samples share numbers",
        OF_A_STAGE,
        rewritten(steps.RlStep, "collect", 'seed.of("samples")', 'seed.of("references", "writer")'),
    ),
    Mutant(
        "seed",
        "every step has one seed",
        OF_A_STAGE,
        rewritten(steps.RlStep, "__call__", 'of("step", draws.step)', 'of("step")'),
    ),
    Mutant(
        "seed",
        "held-out samples are those of the first step",
        OF_A_STAGE,
        rewritten(TASK, "evaluate", 'of("held-out")', 'of("step", 0)'),
    ),
    Mutant(
        "seed",
        "passes over references share numbers",
        OF_A_STAGE,
        rewritten(references.References, "_rewritten", 'of("pass", number)', 'of("pass")'),
    ),
    Mutant(
        "seed",
        "two RL stages share numbers",
        f"{SEEDS}.test_two_stages_share_no_seed",
        rewritten(reinforced, "make_step", "run.seed.of(session.stage.name)", "run.seed"),
    ),
    Mutant(
        "seed",
        "the first pass has the numbers of y0",
        f"{IMPROVE}.test_every_call_has_a_seed_of_its_own_and_batches_share_them",
        rewritten(
            Models,
            "refine",
            'seed.of("pass", *number)',
            'seed.of(*(("y0",) if number == (1,) else ("pass", *number)))',
        ),
    ),
    Mutant(
        "seed",
        "plain and accepting passes share numbers",
        f"{SEEDS}.test_evaluation_and_improvement_use_no_number_twice",
        rewritten(measure, "answer_all", 'seed.of("plain")', 'seed.of("accepted")'),
    ),
    Mutant(
        "seed",
        "both answers of a pair have the same numbers",
        f"{SEEDS}.test_refreshing_samples_every_answer_with_numbers_of_its_own",
        rewritten(refresh, "make_pairs", "seed.of(purpose)", 'seed.of("first")'),
    ),
    Mutant(
        "seed",
        "stages share the order of their data",
        f"{SEEDS}.test_supervised_stages_share_no_seed",
        rewritten(supervised, "order_seed", 'of(stage.name, "order")', 'of("order")'),
    ),
    Mutant(
        "seed",
        "stages share initial weights",
        f"{SEEDS}.test_supervised_stages_share_no_seed",
        rewritten(stages.Stage, "fresh", 'of(self.name, "weights")', 'of("weights")'),
    ),
)

GAP = (
    Mutant(
        "form",
        "RL's gap is raw whatever `gap` says",
        FORM,
        rewritten(rewards.Gap, "__call__", "outputs, self.form,", 'outputs, "raw",'),
    ),
    Mutant(
        "form",
        "improvement's gap is centred whatever `gap` says",
        f"{IMPROVE}.test_the_gap_has_the_form_that_the_config_says",
        rewritten(SEARCHES, "make_pass", "candidates, config.gap)", 'candidates, "centred")'),
    ),
    Mutant(
        "form",
        "sides of the symmetric gap are swapped",
        f"{IMPROVE}.test_gaps_of_several_outputs_are_worked_out_by_hand",
        swapped_sides,
    ),
    Mutant(
        "accept",
        "the threshold is ignored",
        f"{IMPROVE}.test_the_threshold_is_that_of_the_config",
        rewritten(SEARCHES, "_accepted", "self._config.threshold", "0.0"),
    ),
    Mutant(
        "accept",
        "a candidate is compared with y0",
        REPLACES,
        rewritten(
            SEARCHES,
            "make_pass",
            "gap(self._prompts, references,",
            "gap(self._prompts, self._pool.pick(0 * standing),",
        ),
    ),
    Mutant(
        "accept",
        "candidate and answer are swapped",
        REPLACES,
        rewritten(
            SEARCHES,
            "make_pass",
            "gap(self._prompts, references, candidates,",
            "gap(self._prompts, candidates[0], [references],",
        ),
    ),
    Mutant(
        "accept",
        "the accepted flag is inverted",
        REPLACES,
        rewritten(SEARCHES, "_accepted", "best] > threshold", "best] <= threshold"),
    ),
    Mutant(
        "accept",
        "what was rejected is kept",
        REPLACES,
        rewritten(SEARCHES, "make_pass", "(accepted, place + best, standing)", "(accepted, standing, place + best)"),
    ),
    Mutant(
        "accept",
        "every pass refines y0",
        f"{IMPROVE}.test_the_policy_answers_and_the_improver_refines_the_answer_that_was_kept",
        rewritten(SEARCHES, "make_pass", "self._pool.pick(standing)", "self._pool.pick(0 * standing)"),
    ),
    Mutant(
        "accept",
        "plain iteration obeys the stop rule",
        f"{IMPROVE}.test_without_a_stop_rule_every_candidate_is_kept",
        rewritten(SEARCHES, "_accepted", "if self._stop_rule else", "if True else"),
    ),
)

SEARCH = (
    Mutant("search", "best-of-n takes the worst", PLAIN_SEARCH, rewritten(pool.Pool, "best", "argmax", "argmin")),
    Mutant(
        "search",
        "the round-robin is one-sided",
        RANKED,
        rewritten(pool.Pool, "_table", "else -gaps[b, a]", "else 0.0"),
    ),
    Mutant(
        "search",
        "sides of a round-robin are swapped",
        RANKED,
        rewritten(pool.Pool, "_compare", "(inputs, others, [ones],", "(inputs, ones, [others],"),
    ),
    Mutant(
        "search",
        "rank by both leaves R_P out",
        RANKED,
        rewritten(pool.Pool, "scores", 'if rank != "gap" else None', 'if rank == "quality" else None'),
    ),
    Mutant(
        "search",
        "scores of both are added as they are",
        RANKED,
        rewritten(pool.Pool, "scores", "sum(map(standardised, tables))", "sum(tables)"),
    ),
    Mutant(
        "search",
        "all chains improve one draw",
        PLAIN_SEARCH,
        rewritten(SEARCHES, "begin_chains", "np.arange(shape[1]) if every", "self.kept[:, None] if every"),
    ),
    Mutant(
        "search",
        "the first draw is improved, not the best",
        PLAIN_SEARCH,
        rewritten(SEARCHES, "begin_chains", "else self.kept[:, None]", "else 0 * self.kept[:, None]"),
    ),
    Mutant(
        "search",
        "the first candidate of a pass is taken",
        PLAIN_SEARCH,
        rewritten(SEARCHES, "_accepted", "values.argmax(axis=1)", "0 * values.argmax(axis=1)"),
    ),
    Mutant(
        "search",
        "the last choice is among what was kept",
        PLAIN_SEARCH,
        rewritten(SEARCHES, "_answer", 'self._config.select == "all"', "False"),
    ),
    Mutant(
        "search",
        "the probability's threshold is ignored",
        PLAIN_SEARCH,
        rewritten(SEARCHES, "_accepted", "calibration.threshold", "0.0"),
    ),
    Mutant(
        "search",
        "R_P's difference has the wrong sign",
        PLAIN_SEARCH,
        rewritten(
            SEARCHES,
            "_accepted",
            "quality[:, place:] - quality[self._rows, standing][:, None]",
            "quality[self._rows, standing][:, None] - quality[:, place:]",
        ),
    ),
    Mutant(
        "search",
        "a chain restarts though its last pass was accepted",
        PLAIN_SEARCH,
        rewritten(SEARCHES, "make_pass", "np.where(accepted, 0,", "np.where(accepted, 1,"),
    ),
    Mutant(
        "search",
        "a restart uses the numbers of the first draw again",
        OWN_NUMBERS,
        rewritten(SEARCHES, "_candidates", "draw = config.draws + ((", "draw = 1 + 0 * (("),
    ),
    Mutant(
        "search",
        "chains share their numbers",
        OWN_NUMBERS,
        rewritten(SEARCHES, "_candidates", "number if chain or index else (passes,)", "(passes,)"),
    ),
    Mutant(
        "search",
        "the calibration is fitted on evaluation prompts",
        f"{SEARCHED}.test_splits_are_chosen_on_the_judge_s_fold_which_no_evaluation_uses",
        rewritten(splitting, "held_out_prompts", "run.fold(FOLD)", 'run.fold("eval")'),
    ),
    Mutant(
        "search",
        "a calibration sees candidates over y0",
        f"{SEARCHED}.test_a_calibration_is_fitted_to_candidates_of_both_over_what_they_would_replace",
        rewritten(splitting, "calibration_of", "path.answer(number) for", "path.answer(0) for"),
    ),
    Mutant(
        "search",
        "the worst split is chosen",
        CHOSEN,
        rewritten(splitting, "search_of", "splits[max(means", "splits[min(means"),
    ),
    Mutant(
        "search",
        "a budget takes the smallest split",
        f"{SEARCHED}.test_a_budget_takes_the_largest_split_within_it",
        rewritten(recording, "with_budget", "max(fitting)", "min(fitting)"),
    ),
    Mutant(
        "search",
        "a choice for other models is taken",
        f"{SEARCHED}.test_a_budget_is_refused_where_nothing_was_chosen_for_it",
        rewritten(recording, "read_searched", 'values["identity"] != identity_of(run, config)', "False"),
    ),
)

RESULTS = (
    Mutant(
        "results",
        "wins and losses are swapped",
        f"{EVALUATION}.test_deltas_are_wins_of_the_named_over_the_other",
        rewritten(measure, "deltas", "scores[pair[0]], scores[pair[1]]", "scores[pair[1]], scores[pair[0]]"),
    ),
    Mutant(
        "results",
        "lengths of both sides are those of one",
        f"{EVALUATION}.test_lengths_of_the_controlled_delta_are_those_of_the_same_answers",
        rewritten(measure, "deltas", 'lengths["improved"], lengths', 'lengths["policy"], lengths'),
    ),
    Mutant(
        "results",
        "acceptance is that of the first pass",
        f"{EVALUATION}.test_quality_is_that_of_the_answer_after_each_pass",
        rewritten(measure, "quality_series", "steps[k - 1]", "steps[0]"),
    ),
    Mutant(
        "results",
        "a subset has the quality of all prompts",
        f"{EVALUATION}.test_quality_of_a_subset_is_that_of_its_prompts_alone",
        rewritten(measure, "quality_series", "if rows is None else list(rows)", "if rows is None else [0, 1, 2]"),
    ),
    Mutant(
        "results",
        "the length baseline says shorter is better",
        ACCURACIES,
        rewritten(
            measure,
            "model_accuracies",
            "length_baseline_accuracy(better, worse)",
            "length_baseline_accuracy(worse, better)",
        ),
    ),
    Mutant(
        "results",
        "every judge gives a verdict",
        f"{EVALUATION}.test_a_judge_gives_a_verdict_only_if_it_knows_more_than_length",
        lambda: mock.patch.object(measure, "judge_verdict_allowed", return_value=True),
    ),
    Mutant(
        "results",
        "board.gold=judge is ignored",
        f"{EVALUATION}.test_gold_is_of_the_oracle_or_of_the_judge_as_the_board_says",
        rewritten(gold, "gold_of", '== "judge"', '== "none"'),
    ),
    Mutant(
        "labels",
        "the oracle's labels are inverted",
        f"{EVALUATION}.test_labels_prefer_the_answer_of_more_worth",
        rewritten(
            gold,
            "labeller_of",
            "known(inputs, first) - known(inputs, second)",
            "known(inputs, second) - known(inputs, first)",
        ),
    ),
    Mutant(
        "labels",
        "a refreshed pair has the worse answer first",
        f"{RESUME}.test_labels_put_the_better_answer_first",
        rewritten(refresh, "labelled", "if label > 0", "if label < 0"),
    ),
    Mutant(
        "labels",
        "accuracies on own answers are of the first reward models",
        f"{EVALUATION}.test_accuracies_on_own_answers_are_of_the_last_models_and_of_what_the_labels_say",
        rewritten(
            measure,
            "own_accuracies",
            "(refresh.last_quality, refresh.last_gap)",
            "(lambda _: reward.QUALITY, lambda _: reward.GAP)",
        ),
    ),
    Mutant(
        "labels",
        "the worse of two own answers counts as the better",
        f"{EVALUATION}.test_accuracies_on_own_answers_are_of_the_last_models_and_of_what_the_labels_say",
        rewritten(measure, "own_accuracies", "worth[1][differing] > worth[0]", "worth[1][differing] < worth[0]"),
    ),
    Mutant(
        "labels",
        "held-out pairs are trained on",
        f"{RESUME}.test_held_out_pairs_are_not_trained_on",
        rewritten(refresh, "mixed_batches", "if i % config.held_out_every]", "if True]"),
    ),
)

ONE_STEP = (
    Mutant(
        "step",
        "advantages without leave-one-out",
        BY_HAND,
        lambda: mock.patch.object(rloo, "leave_one_out", lambda values: values - values.mean()),
    ),
    Mutant(
        "step",
        "beta has the other sign",
        BY_HAND,
        shaped(lambda real, s, kl, done, length, options: real(s, -kl, done, length, **options)),
    ),
    Mutant(
        "step",
        "finished samples pay the penalty of cut ones",
        BY_HAND,
        shaped(lambda real, s, kl, done, length, options: real(s, kl, ~done, length, **options)),
    ),
    Mutant(
        "step",
        "policy and anchor are swapped in the KL",
        BY_HAND,
        rewritten(steps.RlStep, "measure", "logp, anchor_logp, kl, anchored =", "anchor_logp, logp, kl, anchored ="),
    ),
    Mutant(
        "step",
        "the running scale is not applied",
        BY_HAND,
        rewritten(steps.RlStep, "measure", "np.float32(control.scores.deviation)", "np.float32(1)"),
    ),
    Mutant(
        "step",
        "the scale of scores is that of the eval fold",
        f"{REFERENCES}.test_scores_are_in_log_odds_of_the_pairs_of_the_rl_fold",
        rewritten(
            reinforced, "make_step", "run.fold(session.stage.fold), reward_model", 'run.fold("eval"), reward_model'
        ),
    ),
    Mutant(
        "step",
        "the scale of scores is not applied",
        f"{REFERENCES}.test_scores_are_in_log_odds_of_the_pairs_of_the_rl_fold",
        rewritten(rewards.Scaled, "__call__", " * np.float32(self.factor)", ""),
    ),
    Mutant(
        "step",
        "facts of samples stand in other slots",
        f"{STEP}.test_every_slot_trains_on_the_facts_of_its_own_sample",
        rewritten(steps.RlStep, "pack", "by_slot(values, batch)", "by_slot(values[::-1], batch)"),
    ),
    Mutant(
        "step",
        "advantages stand in other slots",
        BY_HAND,
        rewritten(rloo.Rloo, "prepare", "by_slot(value, batch)", "by_slot(value[::-1], batch)"),
    ),
    Mutant(
        "step",
        "trees stand in the order of their slots",
        f"{STEP}.test_every_slot_trains_on_the_facts_of_its_own_sample",
        rewritten(records, "by_slot", "values[batch.example_id[present]]", "values[: present.sum()]"),
    ),
    Mutant(
        "step",
        "the temperature is missing in log-probs",
        ROWS,
        rewritten(readings, "predictions", "temperature=temperature", "temperature=1.0"),
    ),
    Mutant(
        "step",
        "tokens of finished samples begin one place early",
        ROWS,
        rewritten(readings, "places", '- length + batch["finished"].astype(jnp.int32)', "- length"),
    ),
    Mutant(
        "step",
        "the anchor's log-probs are of another batch",
        ROWS,
        rewritten(rloo.Rloo, "prepare", "measures.anchored, strict=True", "measures.anchored[::-1], strict=True"),
    ),
    Mutant(
        "step",
        "a refused step teaches the controllers",
        f"{RESUME}.test_a_refused_step_teaches_the_controllers_nothing",
        rewritten(TASK, "step", "if not float(totals[REFUSED].sum):", "if True:"),
    ),
    Mutant(
        "step",
        "ratios are to the log-probs of another tree",
        f"{CLIPPED}.test_every_update_compares_with_the_log_probs_that_were_read_before_the_first",
        rewritten(clipped.Clipped, "prepare", "by_slot(value, batch)", "by_slot(value[::-1], batch)"),
    ),
    Mutant(
        "step",
        "the rollout is read again before every update",
        f"{CLIPPED}.test_every_update_compares_with_the_log_probs_that_were_read_before_the_first",
        rewritten(steps.RlStep, "__call__", "minibatch.arrays,", READ_AGAIN),
    ),
    Mutant(
        "step",
        "trees of a minibatch have the numbers of the first one's",
        f"{CLIPPED}.test_every_epoch_takes_every_tree_once_in_an_order_of_its_own",
        rewritten(steps.RlStep, "pack", "part.start)", "0)"),
    ),
    Mutant(
        "step",
        "all epochs have one order",
        f"{CLIPPED}.test_every_epoch_takes_every_tree_once_in_an_order_of_its_own",
        rewritten(clipped.Clipped, "prepare", "seed.of(epoch)", "Seed((0,))"),
    ),
    Mutant(
        "step",
        "every update counts as a step",
        f"{CLIPPED}.test_all_updates_of_a_rollout_are_one_step",
        rewritten(steps.RlStep, "__call__", "state.step - 1", "state.step"),
    ),
    Mutant(
        "step",
        "the coefficient follows another metric",
        f"{RESUME}.test_the_coefficient_follows_the_kl_of_its_own_step",
        rewritten(TASK, "step", 'values["objective/kl_penalty"]', 'values["objective/entropy"]'),
    ),
    Mutant(
        "step",
        "feedback goes to other draws",
        f"{RESUME}.test_feedback_reaches_the_draws_that_it_is_about",
        rewritten(TASK, "step", "update(draws, scored.scores)", "update(draws, scored.scores[::-1])"),
    ),
    Mutant(
        "step",
        "held-out evaluation moves the running scale",
        f"{RESUME}.test_held_out_evaluation_changes_nothing",
        rewritten(
            TASK,
            "evaluate",
            "return self.steps.collect(state.params, fold, draws, self._control, seed, adapt=False)[0].values",
            "scored, self._control = self.steps.collect(state.params, fold, draws, self._control, seed)\n"
            "    return scored.values",
        ),
    ),
    Mutant(
        "step",
        "a limit that stops is ignored",
        f"{RESUME}.test_a_signal_beyond_a_limit_that_stops_ends_the_stage_with_that_step_saved",
        rewritten(TASK, "halt", "self._board.stopped()", "None"),
    ),
)

RESUMED = (
    Mutant(
        "resume",
        "draws resume one step late",
        DRAWS,
        rewritten(TASK, "begin", '["draws"], step)', '["draws"], step + 1)'),
    ),
    Mutant(
        "resume",
        "the history keeps the line of the next step",
        DRAWS,
        rewritten(TASK, "begin", "History(session.folder, step)", "History(session.folder, step + 1)"),
    ),
    Mutant(
        "resume",
        "controllers start from nothing",
        STATES,
        rewritten(TASK, "begin", "Controllers.of(restored.controllers)", "self._control"),
    ),
    Mutant(
        "resume",
        "the board starts from nothing",
        STATES,
        rewritten(TASK, "begin", 'restored.controllers["board"]', "None"),
    ),
    Mutant(
        "resume",
        "metrics of a step are written twice",
        f"{RESUME}.test_metrics_after_the_resumed_step_are_written_once",
        rewritten(sessions.Session, "train", "resumed_step=done,", "resumed_step=done + 1,"),
    ),
    Mutant(
        "resume",
        "the mean of a line forgets the steps before",
        LOADERS,
        rewritten(sessions.Session, "train", "pending=pending", "pending=[]"),
    ),
    Mutant(
        "resume",
        "the loader starts at the first step",
        LOADERS,
        rewritten(supervised.SupervisedTask, "begin", "if restored is not None:", "if False:"),
    ),
    Mutant(
        "resume",
        "the mix of pairs starts at the first step",
        LOADERS,
        rewritten(refresh.Mix, "restore", 'state["step"]', "0"),
    ),
    Mutant(
        "resume",
        "tokens are counted from 0",
        f"{RESUME}.test_tokens_are_counted_over_the_whole_stage",
        rewritten(sessions.Session, "train", 'restored.meta["tokens"]', "0"),
    ),
    Mutant(
        "resume",
        "refusals are counted from 0",
        f"{RESUME}.test_refused_steps_in_a_row_are_counted_over_a_resume",
        rewritten(sessions.Session, "train", 'restored.controllers["refused_in_a_row"]', "0"),
    ),
)

ADAPTERS = (
    Mutant(
        "adapter",
        "a stage trains its base",
        TRAINS_ADAPTERS,
        rewritten(sessions.Session, "train", "update.start(initial.trained)", "update.start(initial.params)"),
    ),
    Mutant(
        "adapter",
        "an update has no base",
        TRAINS_ADAPTERS,
        rewritten(sessions.Session, "train", ", initial.frozen)", ")"),
    ),
    Mutant(
        "adapter",
        "a loaded model brings a base of its own",
        SHARES_BASE,
        rewritten(
            stages.Stage,
            "load",
            "on_base(run.base, params)",
            "on_base(run.base.with_params({name: value + 0 for name, value in run.base.params.items()}), params)",
        ),
    ),
    Mutant(
        "adapter",
        "a start that is an anchor too copies its base",
        SHARES_BASE,
        rewritten(Model, "copy", "copy(self.trained)", "copy(self.params)"),
    ),
    Mutant(
        "adapter",
        "held-out losses are of adapters without a base",
        f"{ADAPTED}.test_held_out_measures_see_the_base_and_the_adapters",
        rewritten(supervised.SupervisedTask, "__init__", "Evaluation(loss, frozen)", "Evaluation(loss)"),
    ),
    Mutant(
        "adapter",
        "samples of RL are of adapters without a base",
        ADAPTED_ROLES,
        rewritten(steps.RlStep, "collect", "{**self.frozen, **params}", "params"),
    ),
    Mutant(
        "adapter",
        "the anchor follows the adapters that train",
        ADAPTED_ROLES,
        rewritten(reinforced, "make_step", 'models["anchor"].params', 'models["start"].params'),
    ),
    Mutant(
        "adapter",
        "the improver leaves its start's adapters behind",
        f"{ADAPTED}.test_adapters_start_from_those_that_the_config_names",
        rewritten(supervised, "initial_model", ".with_trained(weights)", ""),
    ),
    Mutant(
        "adapter",
        "a result does not depend on its base",
        f"{ADAPTED}.test_results_depend_on_the_base_and_on_the_adapter",
        rewritten(stages.Stage, "hash", "else self.base_digest(run),", "else '',"),
    ),
    Mutant(
        "adapter",
        "a checkpoint does not name its base",
        f"{ADAPTED}.test_checkpoints_name_the_base",
        rewritten(stages.Stage, "checkpoints", "base=self.base_digest(run)", 'base=""'),
    ),
    Mutant(
        "adapter",
        "every step drops the same inputs",
        DROPOUTS,
        rewritten(supervised.SupervisedTask, "_with_noise", "of(self._done, number)", "of(number)"),
    ),
    Mutant(
        "adapter",
        "microbatches of a step drop the same inputs",
        DROPOUTS,
        rewritten(supervised.SupervisedTask, "_with_noise", "of(self._done, number)", "of(self._done)"),
    ),
    Mutant(
        "adapter",
        "two stages drop the same inputs",
        DROPOUTS,
        rewritten(supervised.SupervisedTask, "__init__", 'of(session.stage.name, "dropout")', 'of("dropout")'),
    ),
    Mutant(
        "adapter",
        "dropout begins again after a resume",
        f"{ADAPTED}.test_dropout_resumes_with_the_next_step",
        rewritten(supervised.SupervisedTask, "begin", "self._done = step", "self._done = 0"),
    ),
)

CHATS = (
    Mutant(
        "chat",
        "a reference is closed as an input is",
        SAID,
        closed("SegmentKind.REFERENCE: self.reference", "SegmentKind.REFERENCE: self.input"),
    ),
    Mutant(
        "chat",
        "the improver's x is closed as the policy's",
        SAID,
        closed("self.reviewed if", "self.input if"),
    ),
    Mutant(
        "chat",
        "nobody asks for a better answer",
        SAID,
        rewritten(cutting, "cut", "reviewed[k + 1], (", "reviewed[k], ("),
    ),
    Mutant("chat", "EOS carries no loss", LEARNED, weighed(no_loss_at_eos)),
    Mutant("chat", "closings carry loss", LEARNED, weighed(loss_at_closings)),
    Mutant(
        "chat",
        "the improver reads x as the policy does",
        SERVED,
        rewritten(sampling.Sampler, "samples", "*closings.reviewed", "*closings.input"),
    ),
    Mutant(
        "chat",
        "the improver is not asked for a better answer",
        SERVED,
        rewritten(sampling.Sampler, "samples", "*closings.reference", "*closings.input"),
    ),
    Mutant(
        "chat",
        "a reference is as sampled, not as served",
        SERVED,
        rewritten(sampling.Sampler, "answers", "self.served(", "("),
    ),
)

HTTP = "test_wiring_http"
IMPROVES = f"{HTTP}.test_improved_answers_with_the_policy_and_improves_by_the_gap"
CHOICES = f"{HTTP}.test_an_answer_alone_is_the_answer_among_64_and_each_choice_is_another"

SERVE = (
    Mutant(
        "serve",
        "the policy makes the candidates",
        IMPROVES,
        rewritten(serving.Answerer, "write", "else self._models.improver", "else self._policy"),
    ),
    Mutant(
        "serve",
        "a pass has the numbers of y0",
        IMPROVES,
        rewritten(serving._Writer, "refine", '_SEED.of("pass", *number)', '_SEED.of("y0")'),
    ),
    Mutant(
        "serve",
        "the policy answers in the place of a given answer",
        f"{HTTP}.test_an_answer_at_the_end_of_the_conversation_is_y0",
        rewritten(serving.Answerer, "__call__", "row.request.question.answer is None and not", "not"),
    ),
    Mutant(
        "serve",
        "a search answers with what was made last",
        f"{HTTP}.test_a_search_answers_with_the_best_of_what_it_made",
        rewritten(serving.Answerer, "_improved", "made[int(rounds[-1].kept[number])]", "made[-1]"),
    ),
    Mutant(
        "serve",
        "further draws have the numbers of y0",
        f"{HTTP}.test_a_search_answers_with_the_best_of_what_it_made",
        rewritten(serving._Writer, "draw", '_SEED.of("draw", number)', '_SEED.of("y0")'),
    ),
    Mutant(
        "serve", "choices share numbers", CHOICES, rewritten(serving, "rows_of", "seed, choice, prompt", "seed, prompt")
    ),
    Mutant(
        "serve",
        "the seed of a request is not used",
        f"{HTTP}.test_seeds_decide_and_without_one_each_answer_is_another",
        rewritten(serving, "rows_of", "seed, choice, prompt", "choice, prompt"),
    ),
    Mutant(
        "serve",
        "all have the temperature of the first request",
        f"{HTTP}.test_temperatures_are_drawn_together_and_filters_apart",
        rewritten(serving.Answerer, "_draw", "[row.request.strategy for", "[rows[0].request.strategy for"),
    ),
    Mutant(
        "serve",
        "kinds of sampling are drawn together",
        f"{HTTP}.test_temperatures_are_drawn_together_and_filters_apart",
        rewritten(batching.Batcher, "_next", "and self._kind(item) == kind", ""),
    ),
    Mutant(
        "serve",
        "an answer goes to the improver as sampled, not as served",
        f"{HTTP}.test_conversations_are_served_in_the_chat_format_of_the_run",
        rewritten(serving.Answerer, "_improve", "first = self._sampler.served(", "first = ("),
    ),
)

MUTANTS = (
    *(*FOLDS, *TREE, *ROLE, *REFERENCE, *SEED, *GAP, *SEARCH, *RESULTS, *ONE_STEP, *RESUMED),
    *(*ADAPTERS, *CHATS, *SERVE),
)
"""All of them."""
