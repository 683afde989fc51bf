"""Options, paths and help texts that the commands share, and the run or config that they name."""

import inspect
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from pit.config import (
    TRACKERS,
    Accept,
    AcceptBy,
    Chains,
    ConfigError,
    Rank,
    RlConfig,
    RunConfig,
    Select,
    override,
    read_config,
)
from pit.config.improve import SPLIT

if TYPE_CHECKING:
    from pit.run.folder import Run


class LocalPath(click.Path):
    """A path of this machine; an address such as gs://bucket would silently become a local folder named "gs:"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            ConfigError: the value is an address.
        """
        if "://" in os.fspath(value):
            name = param.opts[0] if param else "path"
            raise ConfigError(
                f"{name} = {os.fspath(value)!r}: must be a path of this machine, not an address; give a local folder "
                "(checkpoints can live in a bucket: --checkpoints gs://BUCKET/FOLDER)"
            )
        return super().convert(value, param, ctx)


class PngPath(LocalPath):
    """A path of a plot; PNG bytes under another suffix would be taken for something else."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            ConfigError: the value is an address, or does not end in .png.
        """
        path = super().convert(value, param, ctx)
        name = param.opts[0] if param else "path"
        if not os.fspath(value):
            raise ConfigError(f"{name} = '': must name a file; for example {name} plot.png")
        if Path(path).suffix.lower() != ".png":
            raise ConfigError(
                f"{name} = {os.fspath(value)!r}: must end in .png, because plots are PNG; for example "
                f"{name} {shlex.quote(str(Path(path).with_suffix('.png')))}"
            )
        return path


FILE = LocalPath(path_type=Path, dir_okay=False)
FOLDER = LocalPath(path_type=Path, file_okay=False)
INPUT = LocalPath(exists=True, dir_okay=False, allow_dash=True)
OUTPUT = LocalPath(dir_okay=False, allow_dash=True)
PNG = PngPath(path_type=Path, dir_okay=False)
run_option = click.option(
    "--run",
    "folder",
    type=FOLDER,
    required=True,
    help="Folder of a run, as made by `pit run RECIPE --out FOLDER` or `pit data prepare`.",
)
config_option = click.option(
    "--config", "file", type=FILE, help="YAML or JSON of config fields, such as RUN/config.json; --set wins over it."
)
set_option = click.option(
    "--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change one field; repeatable."
)
data_option = click.option(
    "--data", type=LocalPath(path_type=Path), help="Folder or file of preferences (HH-RLHF, TRL, ...)."
)
model_option = click.option(
    "--model",
    metavar="PATH",
    help="Pretrained model that the run starts from: a folder of transformers, of `pit export` or of PEFT (whose "
    "adapters are merged into the base that it names), a GGUF file, or hf:OWNER/NAME.",
)
adapter_option = click.option(
    "--adapter",
    metavar="FOLDER",
    help="PEFT folder, or hf:OWNER/NAME, whose adapters are merged into the model first.",
)
reward_option = click.option(
    "--reward",
    metavar="MODULE:FUNCTION",
    help="Reward every RL stage also by a Python function of yours, FILE.py:FUNCTION too: function(prompts, "
    "references, answers, rows) returns a number per answer. Weights: --set SECTION.reward.model_weight=0 (the "
    "function alone), .function_weight.",
)
tracker_option = click.option(
    "--tracker",
    "trackers",
    multiple=True,
    type=click.Choice([*TRACKERS, "none"]),
    help="Where metrics go besides metrics.jsonl; repeatable [tensorboard].",
)
checkpoints_option = click.option(
    "--checkpoints",
    metavar="ROOT",
    help="Keep checkpoints under this folder or gs://BUCKET/FOLDER instead of the run's folder. They outlive its "
    "folder, or machine: the same command elsewhere resumes from them.",
)
profile_option = click.option(
    "--profile", "profile_steps", type=click.IntRange(min=0), default=0, help="Steps to trace with JAX's profiler."
)


def processes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that several processes, on several hosts, run together; it joins them first."""

    @wraps(command)
    def joined(
        *, coordinator: str | None, processes: int | None, process: int | None, distributed: bool, **options: Any
    ) -> None:
        from pit.processes import CLUSTER, Members, start

        members = Members(coordinator, processes, process)
        if distributed and members != CLUSTER:
            raise click.UsageError("--distributed asks the cluster; leave out --coordinator, --processes, --process.")
        # Plans are made without other processes.
        if (distributed or members != CLUSTER) and not options.get("dry_run"):
            start(members)
        command(**options)

    for option in (
        click.option(
            "--distributed", is_flag=True, envvar="PIT_DISTRIBUTED",
            help="One of several processes, as the cluster says: Cloud TPU, SLURM, Open MPI.",
        ),
        click.option(
            "--process", type=int, metavar="K", envvar="PIT_PROCESS", help="Number of this process, from 0."
        ),
        click.option(
            "--processes", type=click.IntRange(min=1), metavar="N", envvar="PIT_PROCESSES",
            help="Processes of this run.",
        ),
        click.option(
            "--coordinator", metavar="HOST:PORT", envvar="PIT_COORDINATOR",
            help="Run as one of several processes that share --out; a free port of process 0's host.",
        ),
    ):  # fmt: skip
        joined = option(joined)
    return joined


def search_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that change a run's section `improve`, and the budget that chooses a split of its own."""

    @wraps(command)
    def searching(*, budget: int | None, **options: Any) -> None:
        given = [name for name in SPLIT if options[name] is not None]
        if budget is not None and given:
            named = ", ".join(f"--{name}" for name in given)
            raise click.UsageError(f"--budget chooses draws, passes and rules; leave out {named}.")
        command(budget=budget, **options)

    count = click.IntRange(min=1)

    def choice(names: Any) -> click.Choice[str]:
        return click.Choice(get_args(names))

    for option in (
        click.option(
            "--budget", type=count, metavar="TOKENS",
            help="Spend so many tokens per prompt as held-out prompts favoured, which `pit search` asks.",
        ),
        click.option("--iterations", type=click.IntRange(min=0), help="Passes of the improver [the run's config]."),
        click.option("--draws", type=count, help="Answers of the policy to begin with [the run's config]."),
        click.option("--width", type=count, help="Candidates per pass and chain [the run's config]."),
        click.option("--chains", type=choice(Chains), help="Improve the best draw, or each [the run's config]."),
        click.option("--rank", type=choice(Rank), help="Order of several answers: R_P, gaps, or both."),
        click.option("--select", type=choice(Select), help="Last choice among answers kept, or all made."),
        click.option("--accept", type=choice(Accept), help="Rule that replaces an answer [the run's config]."),
        click.option("--restart", type=click.IntRange(min=0), help="Refused passes before a chain draws anew."),
        click.option("--temperature", type=click.FloatRange(min=0), help="Sampling temperature; 0 is greedy."),
        click.option("--threshold", type=float, help="A candidate is accepted only if its gap exceeds this."),
        click.option(
            "--accept-by", type=choice(AcceptBy),
            help="The gap that accepts: R_PIT's, or the fine-tuned improver's log-likelihood [the run's config].",
        ),
    )[::-1]:  # fmt: skip
        searching = option(searching)
    return searching


class Verbatim(click.Command):
    """A command whose help is printed with the line breaks of its docstring."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring as it is."""
        lines = inspect.cleandoc(self.help or "").splitlines()
        formatter.write("\n" + "".join(f"  {line}".rstrip() + "\n" for line in lines))


class Group(Verbatim, click.Group):
    """A group of such commands."""

    command_class = Verbatim
    group_class = type


def require_outside(out: Path, data: str | None) -> None:
    """Raise if a run's files would be read as its data: out is the folder of the data, or directly in it.

    Raises:
        ConfigError: they would.
    """
    source = Path(data).resolve() if data is not None else None
    if source is not None and source in (out.resolve(), out.resolve().parent):
        other = Path("runs") / (out.resolve().name or "mine")
        raise ConfigError(
            f"--out = {out}: lies in the data folder {data}, which would take the run's files for data; name a folder "
            f"elsewhere, for example --out {shlex.quote(str(other))}"
        )


def tracked(trackers: Sequence[str]) -> list[str]:
    """Return the setting of the trackers of the command line; none where it names none."""
    return [f"trackers={','.join(trackers)}"] if trackers else []


def open_run(folder: Path, settings: Sequence[str] = ()) -> "Run":
    """Open the run of a folder, with settings that are not saved."""
    from pit.run.folder import Run

    return Run.open(folder).with_settings(settings)


# Eight parameters: the options that decide a config.
def make_config(
    recipe: str | None,
    data: Path | None,
    checkpoints: str | None,
    settings: Sequence[str],
    file: Path | None = None,
    model: str | None = None,
    adapter: str | None = None,
    reward: str | None = None,
) -> RunConfig:
    """Return a recipe's config, with the fields of a file, then those of the options, in the place of its own."""
    from pit import recipes
    from pit.recipes.chat_model import from_model
    from pit.run.base import exported_facts, open_pretrained

    if recipe is None and file is None:
        raise click.UsageError(f"give a RECIPE ({', '.join(recipes.NAMES)}) or --config FILE.")
    # Adapters may bring a tokenizer and a chat template that the model lacks, or that differ from its own.
    pretrained = None if model is None else open_pretrained(_place(model), None if adapter is None else _place(adapter))
    # An exported improver is asked in the words of its run.
    facts = None if pretrained is None else exported_facts(pretrained)
    asked = [] if facts is None else [f"template.request={facts.request}"]
    if recipe is not None:
        # Sizes of a recipe follow from the data and from the chat template that the settings name.
        sources = asked + ([] if data is None else [f"data.path={data}"])
        sources += [text for text in settings if text.startswith(("data.", "template."))]
        named = override(RunConfig(), sources)
        config = recipes.recipe(recipe, pretrained, named.data, named.template)
    else:
        config = RunConfig() if pretrained is None else from_model(RunConfig(), pretrained)
    return with_options(override(config, asked), data, checkpoints, settings, file, adapter, reward)


# Seven parameters: the options that decide a config.
def with_options(
    config: RunConfig,
    data: Path | None,
    checkpoints: str | None,
    settings: Sequence[str],
    file: Path | None = None,
    adapter: str | None = None,
    reward: str | None = None,
) -> RunConfig:
    """Return a config with the fields of a file, then those of the options, in the place of its own."""
    given = [] if data is None else [f"data.path={data}"]
    if checkpoints is not None:
        given.append(f"checkpoints={checkpoints if '://' in checkpoints else Path(checkpoints).absolute()}")
    if file is not None:
        config = read_config(file, config)
    if adapter is not None:
        given.append(f"base.adapter={_place(adapter)}")
    if reward is not None:
        file_or_module, colon, name = reward.rpartition(":")
        where = str(Path(file_or_module).absolute()) if file_or_module.endswith(".py") else file_or_module
        sections = [field.name for field in fields(config) if isinstance(getattr(config, field.name), RlConfig)]
        given += [f"{section}.reward.function={where}{colon}{name}" for section in sections]
    return override(config, [*given, *settings])


def _place(name: str) -> str:
    """Return a name on a hub as it is, and the whole path of a file or folder.

    Jobs of a run are processes of their own, and may have another working directory.
    """
    from pit.model.hub import SCHEME

    return name if name.startswith(SCHEME) else str(Path(name).absolute())
