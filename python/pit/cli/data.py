"""The commands `pit data ...`: check, make and tokenise preferences, and look at a curriculum."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pit.cli.options import (
    FILE,
    FOLDER,
    PNG,
    Group,
    LocalPath,
    checkpoints_option,
    config_option,
    data_option,
    make_config,
    model_option,
    open_run,
    require_outside,
    set_option,
)
from pit.data.errors import DataError
from pit.terminal import Terminal, say

if TYPE_CHECKING:
    from pit.data.check import CheckReport, StoreReport
    from pit.data.template import Template


WINDOWS = (512, 512, 512)
"""Windows that `pit data check` counts with, as in the paper."""


@click.group(cls=Group)
def data() -> None:
    """Read, check, make and tokenise preference data."""


@data.command("check")
@click.argument("path", type=LocalPath(path_type=Path))
@click.option("--format", "format_name", default="auto", help="A format, or auto to detect it.", show_default=True)
@click.option("--split", default="train", help="train, validation or test.", show_default=True)
@click.option("--strict", is_flag=True, help="Fail on the first row that cannot be used.")
@click.option("--tokenizer", type=FILE, help="Also count tokens, and what the windows cut, by this tokenizer.json.")
@click.option("--model", metavar="PATH", help="The same in the chat format of a pretrained model.")
@click.option("--full", is_flag=True, help="Token stores only: verify every byte.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
# Eight parameters: the options of the command.
def data_check(
    path: Path,
    format_name: str,
    split: str,
    strict: bool,
    tokenizer: Path | None,
    model: str | None,
    full: bool,
    as_json: bool,
) -> None:
    """Count the usable rows of PATH, say why the others are not, and show lengths, length bias and an example tree.

    --tokenizer and --model count with windows of 512 tokens. Of a token store (RUN/store) it shows the contents and,
    with --full, verifies every byte.
    """
    from pit.data.check import check, check_store
    from pit.data.store import is_store

    report: CheckReport | StoreReport
    if is_store(path):
        if (format_name, split, strict, tokenizer, model) != ("auto", "train", False, None, None):
            raise DataError(
                f"{path}: is a token store, and --format, --split, --strict, --tokenizer and --model are for raw "
                "preferences; leave them out"
            )
        report = check_store(path, full)
    elif full:
        raise DataError(
            f"{path}: --full verifies a token store, and this is none (no manifest.json with .arrow files); name a "
            "folder such as RUN/store, or leave --full out to check raw preferences"
        )
    else:
        template = _template_of(tokenizer, model)
        report = check(path, format=format_name, split=split, strict=strict, template=template)
    if as_json:
        say(report.to_json())
    else:
        report.render(Terminal())


def _template_of(tokenizer: Path | None, model: str | None) -> "Template | None":
    """Return the template that --tokenizer or --model names; None without either."""
    from pit.data.template import RoleTemplate
    from pit.data.tokenizer import Tokenizer

    if tokenizer is not None and model is not None:
        raise click.UsageError("give --tokenizer or --model, not both: a model has its own tokenizer.")
    if model is not None:
        from pit.config import TemplateConfig
        from pit.data.chat import ChatTemplate
        from pit.run.base import chat_of, open_pretrained

        settings = TemplateConfig()
        return ChatTemplate(*chat_of(open_pretrained(model), settings), WINDOWS, settings.request)
    return None if tokenizer is None else RoleTemplate(Tokenizer.load(tokenizer), WINDOWS)


@data.command("synthetic")
@click.option("--out", type=LocalPath(path_type=Path), required=True, help="Folder to make (absent or empty).")
@click.option("--rows", type=click.IntRange(min=1), default=48_000, show_default=True, help="Rows to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the data set.")
@click.option("--task", type=click.Choice(["describe", "relay", "instruct"]), default="describe", show_default=True)
def data_synthetic(out: Path, rows: int, seed: int, task: str) -> None:
    """Write a task's synthetic preferences as JSONL with TRL's columns prompt, chosen, rejected."""
    from pit.data.synthetic import write

    for file in write(out, rows, seed, task=task):
        say(f"{file}: {rows:,} rows")


@data.command("prepare")
@click.argument("recipe", required=False)
@model_option
@data_option
@click.option("--out", type=FOLDER, required=True, help="Folder of the run.")
@config_option
@set_option
@checkpoints_option
# Seven parameters: the options of the command.
def data_prepare(
    recipe: str | None,
    model: str | None,
    data: Path | None,
    out: Path,
    file: Path | None,
    settings: tuple[str, ...],
    checkpoints: str | None,
) -> None:
    """Start a run folder for RECIPE and tokenise its data; the stages can then be run one by one."""
    from pit.run.folder import Run
    from pit.stages.prepare import prepare, require_data

    config = make_config(recipe, data, checkpoints, settings, file, model)
    require_data(config)
    require_outside(out, config.data.path)
    run = Run(out, config)
    prepared = prepare(run)
    run.save_config()  # parts that may change while a run is on
    if prepared is None:
        say(f"{out / 'store'}: up to date")
    else:
        first, *more = prepared.lines()
        say("\n  ".join([f"{out / 'store'}: {first}", *more]))


@data.command("curriculum")
@click.argument("recipe", required=False)
@click.option("--run", "folder", type=FOLDER, help="Folder of a run that has drawn.")
@click.option("--stage", default="rl-improver-0", show_default=True, help="RL stage.")
@set_option
@click.option("--examples", type=click.IntRange(min=2), default=1000, show_default=True, help="To simulate with.")
@click.option("--plot", type=PNG, help="Also draw it, as PNG.")
# Six parameters: the options of the command.
def data_curriculum(
    recipe: str | None, folder: Path | None, stage: str, settings: tuple[str, ...], examples: int, plot: Path | None
) -> None:
    r"""Show the draws of an RL stage: of a run (--run), or of RECIPE with a simulated learner.

    Examples:
      pit data curriculum --run runs/demo --stage rl-improver-1 --plot drawn.png
      pit data curriculum demo --examples 500 --plot planned.png --set rl_improver_0.steps=200 \
        --set rl_improver_0.gap=centred --set rl_improver_0.curriculum.strategy=gap_band
    """
    from pit.report.curriculum import curriculum_png, curriculum_table
    from pit.stages.look_back import look_ahead, look_back

    if (recipe is None) == (folder is None):
        raise click.UsageError("give either a RECIPE to simulate or --run FOLDER to look back at.")
    if folder is not None:
        look = look_back(open_run(folder), stage)
    else:
        look = look_ahead(make_config(recipe, None, None, settings), stage, examples)
    Terminal(width=110).print(curriculum_table(look.title, look.visits, look.difficulty))
    if plot is not None:
        say(str(curriculum_png(look.title, look.visits, look.difficulty, plot)))
