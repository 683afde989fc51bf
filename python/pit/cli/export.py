"""The command `pit export`: a stage's model as a folder for other programs."""

from pathlib import Path
from typing import Literal

import click

from pit.cli.options import FOLDER, Verbatim, open_run
from pit.config import ConfigError


@click.command("export", cls=Verbatim)
@click.option(
    "--run", "source", type=FOLDER, required=True, help="Folder of a run, as made by `pit run RECIPE --out FOLDER`."
)
@click.argument("stage")
@click.argument("folder", type=FOLDER)
@click.option("--merged", is_flag=True, help="Whole weights, for transformers; the default.")
@click.option("--adapter", is_flag=True, help="The adapters alone, for PEFT.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of the weights in the file.",
)
@click.option("--base", metavar="NAME", help="Name of the pretrained model, for the card and for PEFT [the run's].")
# Seven parameters: the options of the command.
def export_command(
    source: Path,
    stage: str,
    folder: Path,
    merged: bool,
    adapter: bool,
    dtype: Literal["float32", "bfloat16", "float16"],
    base: str | None,
) -> None:
    """Write the model of STAGE as a new FOLDER that transformers loads without PIT.

    FOLDER holds config.json, safetensors, the tokenizer with its chat template, generation_config.json, and README.md,
    a model card whose code uses the model. Policies and improvers are ...ForCausalLM; the improver is the assistant's
    second turn. Reward models are ...ForSequenceClassification with one label. FOLDER appears whole or not at all.

    Examples:
      pit export --run runs/mine rl-improver-1 improver                 the improver, merged
      pit export --run runs/mine reward-gap gap --dtype bfloat16        the gap model, which accepts answers
      pit export --run runs/mine rl-policy policy --adapter             LoRA in PEFT's files
      pit run chat --model improver --data more.jsonl --out runs/next   start a run from it
      pit check gap --data pairs.jsonl                                  test a reward model from its folder
    """
    from pit.export import export
    from pit.stages.graph import stage_named, stages_of
    from pit.terminal import say

    if merged and adapter:
        raise click.UsageError("--merged and --adapter are two forms of a model; give one of them.")
    run = open_run(source)
    named = stage_named(stage)
    if named is None:
        names = ", ".join(each.name for each in stages_of(run.config))
        raise ConfigError(f"STAGE = {stage!r}: is not a stage; give one of {names}")
    export(run, named, folder, form="adapter" if adapter else "merged", dtype=dtype, base=base)
    say(str(folder))
