"""The command `pit`: a thin layer of click over the stages; every error a user can cause ends in one clear line."""

import ctypes
import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from pit.bench import bench
from pit.config import AcceptBy, ConfigError, RunConfig, override
from pit.data._core import CoreError
from pit.data.errors import DataError
from pit.errors import Interruption, PitError
from pit.testing.command import check


class LocalPath(click.Path):
    """A path of this machine; an address such as gs://bucket would silently become a local folder named "gs:"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

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


run_option = click.option(
    "--run",
    "folder",
    type=LocalPath(path_type=Path, file_okay=False),
    required=True,
    help="Folder of a run, as made by `pit run RECIPE --out FOLDER` or `pit data prepare`.",
)
checkpoints_option = click.option(
    "--checkpoints",
    metavar="ROOT",
    help="Keep checkpoints under this folder or gs://BUCKET/FOLDER instead of the run's folder; with them a run "
    "goes on after its folder, or machine, is lost.",
)
settings_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Change board or evaluate, this once; repeatable.",
)
profile_option = click.option(
    "--profile", "profile_steps", type=click.IntRange(min=0), default=0, help="Trace so many steps with JAX's profiler."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and turns known errors into one line and an exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        cli.main(args=words, prog_name="pit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _stopped(words, "stopped")
    except Interruption as error:
        _stopped(words, str(error) or "stopped")
    except (PitError, CoreError, FloatingPointError, FileNotFoundError, PermissionError) as error:
        _fail(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _report(f"the disk is full{where}; free some space, then run the command again")
        # Writers that still hold data would each complain on the way out.
        os._exit(1)


def _report(message: str) -> None:
    Console(stderr=True).print(f"[bold red]pit: error:[/] {_escaped(message)}", highlight=False, soft_wrap=True)


def _fail(message: str) -> None:
    _report(message)
    sys.exit(1)


def _stopped(words: Sequence[str], message: str) -> None:
    console = Console(stderr=True)
    console.print(
        f"pit: {message}; go on with:  [bold]pit {_escaped(' '.join(words))}[/]", highlight=False, soft_wrap=True
    )
    sys.exit(Interruption.exit_status)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


class _Command(click.Command):
    """A command whose examples keep their line breaks: click's mark for that is a backspace, here written as two
    characters, as docstrings hold no control characters.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.help = self.help and self.help.replace("\\b\n", "\b\n")


class _Group(click.Group):
    """A group of such commands."""

    command_class = _Command
    group_class = type


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pit-jax")
def cli() -> None:
    r"""Teach a language model to improve its own answers, from preference data alone (PIT, ICLR 2024).

    \b
    Start here:
      pit run demo --out runs/demo               the whole method on a synthetic task, minutes on two cores
      pit run hh --data FOLDER --out runs/hh     the same on Anthropic's HH-RLHF as published
      pit data check FOLDER                      look at preference data before training on it
      pit check runs/demo                        does the reward model obey what it must, and what has it learned

    \b
    A run goes through these stages; each also runs alone with --run FOLDER:
      data      tokenise preferences into a store
      sft       policy: M_P on x -> y_w            improver: M_PIT on x, y_l -> y_w
      reward    quality: R_P   gap: R_PIT          judge: an independent judge
      rl        policy: M_P^RL                     first, second: RL,0 and RL,1 of the improver
      evaluate  answers, improvements, intervals, report.html
    """
    cache = os.environ.get("PIT_CACHE", str(Path.home() / ".cache" / "pit"))
    # Read by JAX when it is first imported; a value that the user set stands.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(cache) / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    _keep_freed_memory()
    # A failed write is raised where it is waited for; tracebacks from the threads of Orbax would bury that message.
    absl_logging = importlib.import_module("absl.logging")
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # What gcsfs only suspects of a bucket; that it cannot be used is an error of its own.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def _keep_freed_memory() -> None:
    """Let malloc keep what XLA frees after each step on a CPU, instead of returning it and faulting it in again."""
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


@cli.command("run")
@click.argument("recipe")
@click.option("--data", type=LocalPath(path_type=Path), help="Folder or file of preferences (HH-RLHF, TRL, ...).")
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), help="Folder of the run [runs/RECIPE].")
@click.option("--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change one field; repeatable.")
@checkpoints_option
@click.option("--dry-run", is_flag=True, help="Show stages, steps, tokens and memory; train nothing.")
@profile_option
def run_command(
    recipe: str,
    data: Path | None,
    out: Path | None,
    settings: tuple[str, ...],
    checkpoints: str | None,
    dry_run: bool,
    profile_steps: int,
) -> None:
    r"""Run all stages of RECIPE (demo, tiny, relay, hh, paper); finished ones are skipped, half-done ones resumed.

    \b
    Examples:
      pit run demo
      pit run hh --data ~/hh-rlhf --out runs/hh --set rl_second.steps=50
      pit run hh --data ~/hh-rlhf --checkpoints gs://my-bucket/hh   (outlives this machine)
      pit run paper --dry-run
    """
    console = Console()
    config = _config(recipe, data, checkpoints, settings)
    folder = out or Path("runs") / recipe
    if dry_run:
        plan = importlib.import_module("pit.plan")
        for table in plan.tables(config, folder):
            console.print(table)
        return
    _require_data(config)
    pipeline = importlib.import_module("pit.pipeline")
    context = importlib.import_module("pit.stages.context")
    pipeline.run_pipeline(context.Run(folder, config), console=console, profile_steps=profile_steps)
    console.print(f"[bold]report[/]  {folder / 'report.html'}")


def _config(recipe: str, data: Path | None, checkpoints: str | None, settings: Sequence[str]) -> RunConfig:
    recipes = importlib.import_module("pit.recipes")
    given = [] if data is None else [f"data.path={data}"]
    if checkpoints is not None:
        given.append(f"checkpoints={checkpoints if '://' in checkpoints else Path(checkpoints).absolute()}")
    config: RunConfig = override(recipes.recipe(recipe), [*given, *settings])
    return config


def _require_data(config: RunConfig) -> None:
    if config.data.path is None and config.name not in ("demo", "tiny", "relay"):
        raise ConfigError(f"data.path = None: recipe {config.name} needs preferences; give them with --data FOLDER")
    if config.data.path is not None and not Path(config.data.path).exists():
        raise DataError(f"{config.data.path}: there is no such file or folder; give the preferences with --data FOLDER")


@cli.group()
def data() -> None:
    """Read, check, make and tokenise preference data."""


@data.command("check")
@click.argument("path", type=LocalPath(path_type=Path))
@click.option("--format", "format_name", default="auto", help="hh, summarize, trl or auto.", show_default=True)
@click.option("--split", default="train", help="train, validation or test.", show_default=True)
@click.option("--strict", is_flag=True, help="Fail on the first row that cannot be used.")
@click.option("--full", is_flag=True, help="Token stores only: verify every byte.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def data_check(path: Path, format_name: str, split: str, strict: bool, full: bool, as_json: bool) -> None:
    """Count what is usable in PATH, say why the rest is not, and show lengths, length bias and an example tree.

    Of a token store (RUN/store) it says what the store holds, and with --full whether it is intact.
    """
    from pit.data.check import check, check_store
    from pit.data.store import is_store

    report: Any
    if is_store(path):
        if (format_name, split, strict) != ("auto", "train", False):
            raise DataError(
                f"{path}: is a token store, and --format, --split and --strict are for raw preferences; leave them out"
            )
        report = check_store(path, full)
    elif full:
        raise DataError(
            f"{path}: --full verifies a token store, and this is none (no manifest.json beside .arrow files); name a "
            "folder such as RUN/store, or leave --full out to check raw preferences"
        )
    else:
        report = check(path, format=format_name, split=split, strict=strict)
    if as_json:
        click.echo(report.to_json())
    else:
        report.render(Console())


@data.command("synthetic")
@click.option("--out", type=LocalPath(path_type=Path), required=True, help="Folder to make (absent or empty).")
@click.option("--rows", type=click.IntRange(min=1), default=48_000, show_default=True, help="Rows to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="Names the data set.")
@click.option("--task", type=click.Choice(["describe", "relay"]), default="describe", show_default=True)
def data_synthetic(out: Path, rows: int, seed: int, task: str) -> None:
    """Write synthetic preferences, the demo's or the relay's, as JSONL with TRL's columns prompt, chosen, rejected."""
    from pit.data.synthetic import write

    for file in write(out, rows, seed, task=task):
        click.echo(f"{file}: {rows:,} rows")


@data.command("prepare")
@click.argument("recipe")
@click.option("--data", "path", type=LocalPath(path_type=Path), help="Folder or file of preferences.")
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), required=True, help="Folder of the run.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change one field; repeatable.")
@checkpoints_option
def data_prepare(recipe: str, path: Path | None, out: Path, settings: tuple[str, ...], checkpoints: str | None) -> None:
    """Start a run folder for RECIPE and tokenise its data; the stages can then be run one by one."""
    config = _config(recipe, path, checkpoints, settings)
    _require_data(config)
    context = importlib.import_module("pit.stages.context")
    prepare = importlib.import_module("pit.stages.prepare").prepare
    run = context.Run(out, config)
    run.save_config()
    report = prepare(run)
    if report is None:
        click.echo(f"{out / 'store'}: up to date")
    else:
        click.echo(f"{out / 'store'}: {report.kept:,} of {report.rows:,} rows")


@data.command("curriculum")
@click.argument("recipe", required=False)
@click.option(
    "--run", "folder", type=LocalPath(path_type=Path, file_okay=False), help="Folder of a run that has drawn."
)
@click.option("--stage", default="rl-first", show_default=True, help="rl-policy, rl-first, rl-second, rl-third.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="Change one field; repeatable.")
@click.option("--examples", type=click.IntRange(min=2), default=1000, show_default=True, help="To simulate with.")
@click.option("--plot", type=LocalPath(path_type=Path, dir_okay=False), help="Also draw it, as PNG.")
def data_curriculum(
    recipe: str | None, folder: Path | None, stage: str, settings: tuple[str, ...], examples: int, plot: Path | None
) -> None:
    r"""What an RL stage drew when: of a run (--run), or of RECIPE with a simulated learner, before it costs anything.

    \b
    Examples:
      pit data curriculum --run runs/demo --stage rl-second --plot drawn.png
      pit data curriculum demo --examples 500 --plot planned.png --set rl_first.steps=200 \
        --set rl_first.gap=centred --set rl_first.curriculum.strategy=gap_band
    """
    if (recipe is None) == (folder is None):
        raise click.UsageError("give either a RECIPE to simulate or --run FOLDER to look back at.")
    look = importlib.import_module("pit.stages.look_back")
    if folder is not None:
        seen = look.look_back(_open(folder), stage)
    else:
        seen = look.look_ahead(_config(recipe or "", None, None, settings), stage, examples)
    report = importlib.import_module("pit.report.curriculum")
    Console(width=110).print(report.curriculum_table(seen.title, seen.visits, seen.difficulty))
    if plot is not None:
        click.echo(str(report.curriculum_png(seen.title, seen.visits, seen.difficulty, plot)))


def _open(folder: Path, settings: Sequence[str] = ()) -> Any:
    return importlib.import_module("pit.stages.context").Run.open(folder).with_settings(settings)


def _stage(group: click.Group, which: str, help_text: str, body: Callable[[Any, int], None]) -> None:
    """Add the command `pit GROUP WHICH --run FOLDER`."""

    @group.command(which, help=help_text)
    @run_option
    @profile_option
    @settings_option
    def command(folder: Path, profile_steps: int, settings: tuple[str, ...]) -> None:
        body(_open(folder, settings), profile_steps)


@cli.group()
def sft() -> None:
    """Fine-tune the policy and the improver."""


@cli.group()
def reward() -> None:
    """Train the reward models, and check what they can see."""


@cli.group()
def refresh() -> None:
    """Between RL,0 and RL,1: label samples of the models and train the reward models on with them."""


@cli.group()
def rl() -> None:
    """Reinforcement learning of the policy, then of the improver in curriculum stages."""


def _sft(task: str) -> Callable[[Any, int], None]:
    def body(run: Any, profile_steps: int) -> None:
        module = importlib.import_module("pit.stages.sft")
        module.run_sft(run, getattr(module, task), profile_steps=profile_steps)

    return body


def _reward(task: str) -> Callable[[Any, int], None]:
    def body(run: Any, profile_steps: int) -> None:
        module = importlib.import_module("pit.stages.reward")
        module.run_reward(run, getattr(module, task), profile_steps=profile_steps)

    return body


def _refresh(stage: str) -> Callable[[Any, int], None]:
    def body(run: Any, profile_steps: int) -> None:
        importlib.import_module("pit.stages.refresh").run_refresh(run, stage, profile_steps=profile_steps)

    return body


def _rl(stage: str) -> Callable[[Any, int], None]:
    def body(run: Any, profile_steps: int) -> None:
        gold = importlib.import_module("pit.evaluate.gold").gold_of(run)
        importlib.import_module("pit.stages.rl").run_rl(run, stage, profile_steps=profile_steps, gold=gold)

    return body


_stage(sft, "policy", "M_P: learn y_w from x.", _sft("POLICY"))
_stage(sft, "improver", "M_PIT: learn y_w from x and the reference y_l.", _sft("IMPROVER"))
_stage(reward, "quality", "R_P: rank y_w above y_l.", _reward("QUALITY"))
_stage(
    reward, "gap", "R_PIT: the gap between an answer and a reference, from four orders of each pair.", _reward("GAP")
)
_stage(reward, "judge", "A judge trained on its own fold, for evaluation only.", _reward("JUDGE"))
_stage(refresh, "quality", "R_P, trained on with data and labelled samples.", _refresh("refresh-quality"))
_stage(refresh, "gap", "R_PIT, trained on with data and labelled samples.", _refresh("refresh-gap"))
_stage(rl, "policy", "M_P^RL: maximise R_P under a KL to M_P.", _rl("rl-policy"))
_stage(rl, "first", "RL,0: maximise the gap over references from the data.", _rl("rl-first"))
_stage(rl, "second", "RL,1: maximise the gap over references sampled from M_P^RL.", _rl("rl-second"))
_stage(rl, "third", "RL,2: maximise the gap over references that RL,1's improver rewrote.", _rl("rl-third"))


@refresh.command("pairs")
@run_option
def refresh_pairs(folder: Path) -> None:
    """Sample answers of M_P^RL and of RL,0's improver and have them labelled (by the synthetic task's oracle)."""
    run = _open(folder)
    labeller = importlib.import_module("pit.evaluate.gold").labeller_of(run)
    count = importlib.import_module("pit.stages.refresh").make_pairs(run, labeller)
    click.echo("refresh-pairs: up to date" if count is None else f"refresh-pairs: {count:,} labelled pairs")


@reward.command("check")
@run_option
@settings_option
def reward_check(folder: Path, settings: tuple[str, ...]) -> None:
    """Can R_P and R_PIT see what RL is to improve? Held-out pairs; for the synthetic task also faults, one and many.

    Below a floor of the config (evaluate.*_floor) it warns or fails, as evaluate.gate says.
    """
    gates = importlib.import_module("pit.evaluate.gates")
    run = _open(folder, settings)
    rows = gates.gate_rows(run)
    Console(width=110).print(gates.sensitivity.sensitivity_table(rows))
    for line in gates.require_seeing(rows, run.config.evaluate, f"pit reward check --run {folder}"):
        click.echo(f"warning: a reward model is below a floor, {line}")


@cli.command()
@run_option
@click.option("--input", "source", type=click.File("r", encoding="utf-8"), default="-", help="JSONL [stdin].")
@click.option("--output", "sink", type=click.File("w", encoding="utf-8"), default="-", help="JSONL [stdout].")
@click.option("--iterations", type=click.IntRange(min=1), help="Passes of the improver [the run's config].")
@click.option("--temperature", type=click.FloatRange(min=0), help="Sampling temperature; 0 is greedy.")
@click.option("--threshold", type=float, help="A candidate is accepted only if its gap exceeds this.")
@click.option(
    "--accept-by",
    type=click.Choice(get_args(AcceptBy)),
    help="Whose gap that is: R_PIT's, or the log-likelihood gap of the fine-tuned improver [the run's config].",
)
@click.option("--seed", type=int, default=0, show_default=True)
def improve(
    folder: Path,
    source: Any,
    sink: Any,
    iterations: int | None,
    temperature: float | None,
    threshold: float | None,
    accept_by: str | None,
    seed: int,
) -> None:
    r"""Answer prompts and improve the answers, again and again.

    Reads one JSON object a line with `prompt` (text, or messages with role and content) and, if the first answer is
    given, `answer`; writes `prompt`, `answers` (kept after each pass) and `steps` (candidate, gap, accepted).

    \b
    Example:
      echo '{"prompt": "Describe this red small cheap old round lamp: price, colour and size. End fondly."}' \
        | pit improve --run runs/demo
    """
    serve = importlib.import_module("pit.serve")
    changes = {"iterations": iterations, "temperature": temperature, "threshold": threshold, "accept_by": accept_by}
    given = {name: value for name, value in changes.items() if value is not None}
    serve.improve_lines(_open(folder), source, sink, given, seed=seed)


@cli.command()
@run_option
def evaluate(folder: Path) -> None:
    """Measure a finished run (Delta, quality by iteration, accuracies); write results.json and report.html."""
    collect = importlib.import_module("pit.evaluate.collect").collect
    schema = importlib.import_module("pit.evaluate.schema")
    report = importlib.import_module("pit.report")
    results = collect(_open(folder))
    schema.write_results(results, folder / schema.FILE_NAME)
    report.render(folder)
    _print_results(results)


@cli.command("report")
@run_option
@click.option("--plot", type=LocalPath(path_type=Path, dir_okay=False), help="Also draw quality by iteration, as PNG.")
@click.option("--rl-plot", type=LocalPath(path_type=Path, dir_okay=False), help="Also draw RL step by step, as PNG.")
def report_command(folder: Path, plot: Path | None, rl_plot: Path | None) -> None:
    """Draw report.html again from results.json and the stages' metrics."""
    click.echo(str(importlib.import_module("pit.report").render(folder)))
    if plot is not None:
        results = importlib.import_module("pit.evaluate.schema").read_results(folder)
        click.echo(str(importlib.import_module("pit.report.plots").quality_png(results, plot)))
    if rl_plot is not None:
        metrics = importlib.import_module("pit.report.metrics").read_metrics(folder)
        click.echo(str(importlib.import_module("pit.report.plots").rl_png(metrics, rl_plot)))


def _print_results(results: Any) -> None:
    """The comparisons under the first measure, in points, accuracies and caveats; the report has everything."""
    measure = next((name.split("/")[1] for name in results.delta), "")
    shown = {name.removesuffix(f"/{measure}"): d for name, d in results.delta.items() if name.endswith(f"/{measure}")}
    if shown:
        click.echo(f"win rate less lose rate by the {measure}, points [95 %], {next(iter(shown.values())).n} prompts")
    for name, d in shown.items():
        click.echo(f"  {name.replace('_', ' '):<36} {d.value:+6.1f} [{d.low:+.1f}, {d.high:+.1f}]")
    click.echo("share of held-out pairs ranked right [95 %]")
    for name, a in results.accuracies.items():
        label = "longer is better" if name == "length" else name
        click.echo(f"  {label:<36} {a.value:6.3f} [{a.low:.3f}, {a.high:.3f}]")
    for note in results.notes:
        click.echo(f"note: {note}")


cli.add_command(bench)
cli.add_command(check)


@cli.command()
def env() -> None:
    """Print versions and devices, for a bug report."""
    import platform

    jax = importlib.import_module("jax")
    collect = importlib.import_module("pit.evaluate.collect")
    click.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, version in collect.versions().items():
        click.echo(f"{name} {version}")
    click.echo(f"devices: {', '.join(map(str, jax.devices()))}")
    click.echo(f"compile cache: {os.environ['JAX_COMPILATION_CACHE_DIR']}")
