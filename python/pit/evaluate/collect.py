"""The last job of a run: measure everything and gather it, with costs and caveats, into one `Results`."""

from importlib import metadata

import jax

from pit.config import digest, to_dict
from pit.evaluate import llm_verdicts, measure
from pit.evaluate.schema import RAW, STOP_RULE, Results, StageCost
from pit.evaluate.sensitivity import sensitivity
from pit.evaluate.stats import judge_verdict_allowed, length_rule
from pit.run.folder import Run
from pit.stages.graph import stages_of

PACKAGES = ("pit-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pyarrow", "tokenizers")


def collect(run: Run) -> Results:
    """Return the measurements of a run whose training stages are finished."""
    config = run.config
    synthetic = config.data.synthetic
    answers = measure.answer_all(run)
    accuracies = measure.model_accuracies(run)
    model_judge = measure.model_judge(run, answers, accuracies)
    judge = measure.oracle_judge(run, answers) if synthetic else model_judge
    accuracies |= measure.own_accuracies(run, answers, judge)
    seed, resamples = config.seed, config.evaluate.resamples
    found = measure.deltas(judge, answers, seed=seed, resamples=resamples)
    if judge is not model_judge:
        found |= measure.deltas(model_judge, answers, seed=seed, resamples=resamples)
    series = {
        STOP_RULE: measure.quality_series(judge, answers, stop_rule=True, seed=seed),
        RAW: measure.quality_series(judge, answers, stop_rule=False, seed=seed),
    }
    series |= measure.subset_series(run, judge, answers, seed=seed) if synthetic else {}
    asked = llm_verdicts.ask(run, answers)
    found |= asked.deltas
    return Results(
        recipe=config.name,
        dataset=f"synthetic instructions, {config.data.task}" if synthetic else "the preferences given",
        device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        seeds=(config.seed,),
        config_hash=digest(config),
        config=to_dict(config),
        versions=versions(),
        delta=found,
        quality=series if judge.verdict else {},
        quality_measure="oracle quality, 0 to 1" if synthetic else "judge's score",
        accuracies=accuracies,
        perplexity=measure.perplexities(run) if run.pretrained is not None else {},
        sensitivity=tuple(sensitivity(run)) if synthetic else (),
        stages=_costs(run),
        tokens={name: int(outputs.length.sum()) for name, outputs in answers.methods.items()},
        copy_rate=measure.copy_rates(answers),
        examples=measure.examples(run, answers, judge),
        notes=(*_notes(run, model_judge, accuracies), *asked.notes),
        llm_judge=asked.record,
    )


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide the numbers."""
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def _costs(run: Run) -> tuple[StageCost, ...]:
    costs = []
    for stage in stages_of(run.config):
        record = stage.finished_record(run)
        costs.append(
            StageCost(
                name=stage.name,
                seconds=record["seconds"],
                compile_seconds=record["compile_seconds"],
                steps=record["steps"],
                tokens=record["tokens"],
                peak_memory_bytes=record["peak_memory_bytes"],
            )
        )
    return tuple(costs)


def _notes(run: Run, judge: measure.Judge, accuracies: dict[str, measure.Interval]) -> tuple[str, ...]:
    """Return caveats that follow from the figures themselves."""
    notes = []
    length = accuracies["length"]
    for name, accuracy in accuracies.items():
        # The length rule is of the eval fold's pairs.
        if name != "length" and not name.endswith(measure.OWN) and not judge_verdict_allowed(accuracy, length):
            rule = length_rule(length)
            notes.append(
                f"{name} ranks {accuracy.value:.1%} of held-out pairs right [{accuracy.low:.1%}, {accuracy.high:.1%}]; "
                f'"{rule.text}" ranks {rule.accuracy:.1%} right, so it is not shown to know more than length.'
            )
    if not judge.verdict:
        notes.append("The judge model's verdicts are left out: its accuracy is not clear of the length baseline.")
    if run.config.data.synthetic:
        notes.append(
            "The data are synthetic: a hidden rubric labels them, noisily, and the same rubric judges the result. "
            + (
                "It also labelled the samples that the reward models were refreshed with."
                if run.config.refresh.prompts
                else "No model ever sees the rubric."
            )
        )
    if run.pretrained is not None and run.pretrained.dequantised:
        types = ", ".join(run.pretrained.dequantised)
        notes.append(f"The pretrained model is dequantised from {types}: its weights are rounded ones.")
    notes.append("Intervals are over prompts of this one run; they say nothing about other seeds.")
    return tuple(notes)
