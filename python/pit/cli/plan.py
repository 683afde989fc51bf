"""The command `pit plan`: whether a run fits a slice of TPUs, with no TPU attached."""

import dataclasses
from pathlib import Path

import click

from pit.cli.options import (
    FILE,
    PNG,
    Verbatim,
    adapter_option,
    config_option,
    data_option,
    make_config,
    model_option,
    reward_option,
    set_option,
    with_options,
)
from pit.config import ConfigError, RunConfig
from pit.terminal import Terminal

FORMAT_TOKENS = 64
"""Tokens that a chat format adds to a path, where there is no model to ask: those of SmolLM2's are 54."""


def shaped_by(recipe: str, folder: Path) -> RunConfig:
    """Return a recipe's config whose models have the shape that a folder's config.json describes.

    Weights and tokenizer are not looked for. Text is laid out in role tokens; the windows are the recipe's own or, for
    one that sizes itself by preferences, the largest that it takes.

    Raises:
        ConfigError: there is no such recipe.
        ModelFileError: there is no config.json, or no family has its architecture.
    """
    from pit import recipes
    from pit.config import WindowConfig
    from pit.model.pretrained import Pretrained
    from pit.recipes.lengths import LARGEST, Sizes

    model = Pretrained.described(folder)
    if recipe in recipes.CHAT_RECIPES:
        config = recipes.CHAT_RECIPES[recipe](model, Sizes(WindowConfig(LARGEST, LARGEST, LARGEST), FORMAT_TOKENS))
    else:
        config = recipes.recipe(recipe, model)
    base = dataclasses.replace(config.base, path=None)
    tokenizer = dataclasses.replace(config.tokenizer, path=None, vocab_size=model.vocab_size)
    return dataclasses.replace(config, base=base, tokenizer=tokenizer)


@click.command("plan", cls=Verbatim)
@click.argument("recipe", required=False)
@click.option("--target", "name", metavar="SLICE", required=True, help="Slice of TPUs, for example v5e:4x4.")
@click.option("--stage", "names", multiple=True, metavar="NAME", help="Stage to plan; repeatable [all].")
@click.option("--json", "json_path", type=FILE, help="Also write the plan as JSON.")
@click.option("--plot", "png_path", type=PNG, help="Also draw the memory of each stage, as PNG.")
@model_option
@adapter_option
@data_option
@config_option
@set_option
@reward_option
# Eleven parameters: the options of the command.
def plan_command(
    recipe: str | None,
    name: str,
    names: tuple[str, ...],
    json_path: Path | None,
    png_path: Path | None,
    model: str | None,
    adapter: str | None,
    data: Path | None,
    file: Path | None,
    settings: tuple[str, ...],
    reward: str | None,
) -> None:
    """Compile the programs of every stage of RECIPE for a slice of TPUs, and say whether they fit.

    No TPU is needed: libtpu's compiler runs on any x86 Linux machine (pip install "pit-jax[tpu]"). The mesh must have
    as many devices as the slice has chips. Nothing is trained, and nothing is written but --json and --plot.

    Examples:
      pit plan paper --target v4:2x4x4                              the recipe's own mesh, 1 x 8 x 4
      pit plan paper --target v5e:4x8 --stage rl-policy --json plan.json
      pit plan chat --model M/ --data pairs.jsonl --target v5e:4x4 --set mesh.fsdp=16
      pit plan chat --model M/ --target v5e:4x4 --set mesh.fsdp=16   (M/config.json is enough)
    """
    from pit.plan import tables
    from pit.plan.compiling import plan
    from pit.plan.programs import Setting
    from pit.plan.target import find_target
    from pit.plan.verdict import verdict
    from pit.run.folder import Run
    from pit.stages.graph import stages_of
    from pit.stages.prepare import chat_template
    from pit.train.log import make_reporter

    # A folder without weights gives its shape.
    bare = Path(model) if model is not None and (Path(model) / "config.json").is_file() else None
    if recipe is not None and bare is not None and not any(bare.glob("*.safetensors")):
        config = with_options(shaped_by(recipe, bare), data, None, settings, file, adapter, reward)
    else:
        config = make_config(recipe, data, None, settings, file, model, adapter, reward)
    stages = {stage.name: stage for stage in stages_of(config)}
    unknown = next((each for each in names if each not in stages), None)
    if unknown is not None:
        raise ConfigError(f"--stage = {unknown!r}: is not a stage of this run; give one of {', '.join(stages)}")
    for stage in stages.values():
        stage.validate(config)
    target = find_target(name)
    setting = Setting.of(config, target.mesh(config.mesh), chat_template(Run(Path("runs") / config.name, config)))
    reporter = make_reporter("plan")
    try:
        plans = plan([stages[each] for each in names or stages], setting, target, reporter)
    finally:
        reporter.close()
    verdicts = [verdict(each, setting, target) for each in plans]
    console = Terminal()
    for each in plans:
        for table in (tables.program_table(each, target), tables.network_table(each)):
            if table is not None:
                console.print(table)
    console.print(tables.verdict_table(plans, verdicts, target))
    if json_path is not None:
        tables.write_json(json_path, tables.as_json(plans, verdicts, setting, target))
    if png_path is not None:
        tables.plot(png_path, plans, target)
