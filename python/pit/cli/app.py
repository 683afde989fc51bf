"""The command `pit`: a thin layer of click over jobs and tools. Every error that a user can cause ends in one line."""

import ctypes
import io
import logging
import os
import shlex
import stat
import sys
from collections.abc import Sequence
from io import UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pit import processes
from pit.atomic import naming, require_apart
from pit.cli.bench import bench
from pit.cli.data import data
from pit.cli.export import export_command
from pit.cli.failures import fills_disk, message_of
from pit.cli.options import (
    FOLDER,
    INPUT,
    OUTPUT,
    PNG,
    Group,
    Verbatim,
    adapter_option,
    checkpoints_option,
    config_option,
    data_option,
    make_config,
    model_option,
    open_run,
    processes_options,
    profile_option,
    require_outside,
    reward_option,
    run_option,
    search_options,
    set_option,
    tracked,
    tracker_option,
)
from pit.cli.plan import plan_command
from pit.cli.serve import policy_of, policy_options, serve
from pit.compiler import share_code
from pit.config import ConfigError, to_dict, to_yaml
from pit.data.errors import DataError
from pit.errors import Interruption
from pit.terminal import Terminal, json_line, say, styled, tolerate_encodings
from pit.testing.command import check

if TYPE_CHECKING:
    # At run time JAX is imported by the commands that need it, after its environment is set.
    from pit.run.stage import Job


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and turn known errors into one line and an exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_environment()
    try:
        cli.main(args=words, prog_name="pit", standalone_mode=False)
    except click.ClickException as error:
        words_of_click = io.StringIO()
        error.show(words_of_click)
        say(words_of_click.getvalue().rstrip("\n"), error=True)
        processes.fail(error.format_message())
        processes.end_failed(error.exit_code)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        # click makes an Abort of an EOFError too, which a damaged file can cause.
        if isinstance(error.__cause__, EOFError):
            _fail(error.__cause__)
        processes.fail("was stopped")
        _stopped(words, "stopped")
    except Interruption as error:
        _stopped(words, str(error) or "stopped")
    except Exception as error:  # Whatever a library raises is one line too.
        _fail(error)


def _fail(error: BaseException) -> NoReturn:
    """Print the one line about an error, and exit."""
    message = message_of(error)
    Terminal(stderr=True).print(styled(("pit: error: ", "bold red"), message), highlight=False, soft_wrap=True)
    processes.fail(message)
    processes.end_failed()
    if fills_disk(error):
        # Writers that still hold data would each complain on the way out.
        os._exit(1)
    sys.exit(1)


def _stopped(words: Sequence[str], message: str) -> NoReturn:
    """Print the command that resumes, or for a tool repeats, what was stopped."""
    again = "run it again with:  " if words and words[0] in cli.commands.keys() - {"run"} else "resume with:  "
    line = styled(f"pit: {message}; {again}", (shlex.join(["pit", *words]), "bold"))
    Terminal(stderr=True).print(line, highlight=False, soft_wrap=True)
    processes.end_failed(Interruption.exit_status)
    sys.exit(Interruption.exit_status)


def _prepare_environment() -> None:
    """Set what JAX and its libraries read when they are first imported; values that the user set stand."""
    tolerate_encodings()
    cache = os.environ.get("PIT_CACHE", str(Path.home() / ".cache" / "pit"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(cache) / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    # The TPU compiler of the tests would look for a TPU, and warn, on machines that have no accelerator at all.
    accelerators = ("accel*", "vfio/*", "nvidia*", "kfd")
    if sys.platform == "linux":
        if any(any(Path("/dev").glob(pattern)) for pattern in accelerators):
            share_code()
        else:
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _keep_freed_memory()
    # A failed write is raised where it is waited for; log lines from the threads of Orbax would bury that message.
    # Suspicions of gcsfs are not errors: a bucket that cannot be used raises one.
    for name in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _keep_freed_memory() -> None:
    """Let malloc keep the memory that XLA frees after each step on a CPU, instead of faulting it in again."""
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


class _Jobs(Group):
    """The top group: its own commands, and one for every job of a run."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or that of the job with the name."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        from pit.pipeline import JOBS

        return next((_job_command(job) for job in JOBS if job.name == cmd_name), None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the tools, then the jobs in the order of a run."""
        from pit.pipeline import JOBS

        super().format_commands(ctx, formatter)
        with formatter.section("Jobs of a run, each also alone: pit JOB --run FOLDER"):
            formatter.write_dl([(job.name, job.title) for job in JOBS])


def _job_command(job: "Job") -> click.Command:
    """Return the command `pit NAME --run FOLDER` of a job."""

    @click.command(job.name, cls=Verbatim, help=f"{job.title[0].upper()}{job.title[1:]}.")
    @run_option
    @profile_option
    @tracker_option
    @click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="SECTION.FIELD=VALUE",
        help="Change board, evaluate or trackers, this once.",
    )
    @processes_options
    def command(
        folder: Path, profile_steps: int, trackers: tuple[str, ...], settings: tuple[str, ...], **flags: str | None
    ) -> None:
        from pit.evaluate.gold import services

        given = [(path, flags[path.replace(".", "_")]) for _, path, _ in job.flags]
        chosen = [f"{path}={value}" for path, value in given if value is not None]
        job.work(open_run(folder, (*chosen, *tracked(trackers), *settings)), services(profile_steps))

    for flag, path, text in reversed(job.flags):
        click.option(flag, path.replace(".", "_"), metavar="TEXT", help=text)(command)
    return command


@click.group(cls=_Jobs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pit-jax")
def cli() -> None:
    """Teach a language model to improve its own answers, from preference data alone (PIT, ICLR 2024).

    Start here:
      pit run demo --out runs/demo               the whole method on a synthetic task, minutes on two cores
      pit data check FOLDER                      look at preference data before training on it
      pit run chat --model FOLDER --data FILE    a pretrained chat model, and your preferences
      pit run hh --data FOLDER --out runs/hh     Anthropic's HH-RLHF as published, from random weights
      pit improve --run runs/demo                prompts in, improved answers out
      pit serve --run runs/demo                  the same over HTTP, as OpenAI's chat API
      pit check runs/demo                        invariants of the reward model, and what it has learned
      pit export --run runs/demo rl-policy DIR   a model as a folder for transformers
      pit plan paper --target v4:2x4x4           does it fit a TPU slice? compiled with no TPU
    """


@cli.command("run")
@click.argument("recipe", required=False)
@model_option
@adapter_option
@data_option
@click.option("--out", type=FOLDER, help="Folder of the run [runs/NAME].")
@config_option
@set_option
@reward_option
@checkpoints_option
@tracker_option
@click.option("--dry-run", is_flag=True, help="Show stages, steps, tokens and memory; train nothing.")
@profile_option
@processes_options
# Twelve parameters: the options of the command.
def run_command(
    recipe: str | None,
    model: str | None,
    adapter: str | None,
    data: Path | None,
    out: Path | None,
    file: Path | None,
    settings: tuple[str, ...],
    reward: str | None,
    checkpoints: str | None,
    trackers: tuple[str, ...],
    dry_run: bool,
    profile_steps: int,
) -> None:
    """Run all jobs of RECIPE; finished ones are skipped, half-done ones resumed.

    Recipes: demo, tiny, describe, relay, hh, paper; from a pretrained model: chat, smollm2.

    Examples:
      pit run demo
      pit run chat --model SmolLM2-135M-Instruct/ --data pairs.jsonl --out runs/mine
      pit run chat --model improver/ --data more.jsonl --out runs/next   (a folder of `pit export`)
      pit run chat --model BASE --adapter lora/ --data pairs.jsonl
      pit run hh --data ~/hh-rlhf --out runs/hh --set rl_improver_1.steps=50
      pit run --config runs/hh/config.json --out runs/again
      pit run chat --model M/ --data pairs.jsonl --reward rewards.py:score   (a reward of your own)
      pit run hh --data ~/hh-rlhf --checkpoints gs://my-bucket/hh   (outlives this machine)
      pit run paper --dry-run
      pit run hh --out /shared/hh --coordinator host0:1234 --processes 4 --process 0 ...   (on host 0 of four)
    """
    from pit.pipeline import run_pipeline
    from pit.plan.advice import advice
    from pit.plan.dry_run import tables
    from pit.run.folder import Run
    from pit.stages.prepare import require_data

    console = Terminal()
    console.quiet = not processes.first()
    chosen = [*tracked(trackers), *settings]
    config = make_config(recipe, data, checkpoints, chosen, file, model, adapter, reward)
    folder = out or Path("runs") / config.name
    for line in advice(config):
        console.print(styled(("note", "bold"), f"  {line}"), highlight=False, soft_wrap=True)
    if dry_run:
        for table in tables(config, folder):
            console.print(table)
        return
    require_data(config)
    require_outside(folder, config.data.path)
    run_pipeline(Run(folder, config), console=console, profile_steps=profile_steps)
    console.print(styled(("report", "bold"), f"  {folder / 'report.html'}"), soft_wrap=True)


@cli.command("config")
@click.argument("recipe", required=False)
@model_option
@adapter_option
@data_option
@config_option
@set_option
@reward_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
# Seven parameters: the options of the command.
def config_command(
    recipe: str | None,
    model: str | None,
    adapter: str | None,
    data: Path | None,
    file: Path | None,
    settings: tuple[str, ...],
    reward: str | None,
    as_json: bool,
) -> None:
    """Print the config of RECIPE with all defaults filled in; `pit run --config FILE` starts from such a file.

    Example:
      pit config demo --set seed=3 > mine.yaml && pit run --config mine.yaml --out runs/mine
    """
    config = make_config(recipe, data, None, settings, file, model, adapter, reward)
    say(json_line(to_dict(config), indent=2) if as_json else to_yaml(config).rstrip("\n"))


@cli.command()
@run_option
@click.option("--input", "source", type=INPUT, default="-", help="JSONL [stdin].")
@click.option("--output", "sink", type=OUTPUT, default="-", help="JSONL [stdout].")
@click.option("--strict", is_flag=True, help="Stop at the first line that cannot be answered.")
@search_options
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@policy_options
# Ten parameters: the options of the command.
def improve(
    folder: Path,
    source: str,
    sink: str,
    strict: bool,
    seed: int,
    budget: int | None,
    policy: str | None,
    policy_model: str | None,
    api_key_env: str | None,
    **changes: Any,
) -> None:
    r"""Answer prompts and improve the answers, again and again.

    Reads one JSON object per line with `prompt` (text, or messages with role and content) and, if the first answer is
    given, `answer`; writes `prompt`, `answers` (kept after each round), `steps` (candidate, gap, accepted), `made` (all
    answers, where there are more), `cut` (what did not fit into its window) and all other fields of the line. Answers
    follow as the lines arrive. A line that cannot be answered is named on stderr, and the exit status is then 1.

    With --policy another server with OpenAI's chat API gives the first answers, and this run improves them.

    Examples:
      echo '{"prompt": "Describe this red small cheap old round lamp: price, colour and size. End fondly."}' \
        | pit improve --run runs/demo
      pit improve --run runs/demo --policy http://127.0.0.1:8080/v1 < prompts.jsonl
      pit search --run runs/demo && pit improve --run runs/demo --budget 80 < prompts.jsonl
    """
    from pit.data.arrivals import ByteStream
    from pit.serve.lines import improve_lines

    _require_apart(source, sink, folder)
    run = open_run(folder)
    given = {name: value for name, value in changes.items() if value is not None}
    ask = policy_of(policy, policy_model, api_key_env, given.get("temperature"))
    # The output is opened, and what it held is lost, when the first answer is there.
    with (
        naming("standard output" if sink == "-" else sink),
        click.open_file(source, "rb") as lines,
        click.open_file(sink, "w", encoding="utf-8", lazy=True) as answers,
    ):
        assert isinstance(lines, ByteStream), "files and stdin are buffered"
        improve_lines(run, lines, answers, given, seed=seed, strict=strict, budget=budget, ask=ask)


def _require_apart(source: str, sink: str, folder: Path) -> None:
    """Raise unless the output leaves the input and the run as they are, redirected streams included."""
    if sink != "-":
        require_apart("--output", sink, *([] if source == "-" else [source]), folder)
    try:
        read = os.fstat(sys.stdin.fileno()) if source == "-" else Path(source).stat()
        written = os.fstat(sys.stdout.fileno()) if sink == "-" else Path(sink).stat()
    except (UnsupportedOperation, FileNotFoundError):
        return
    if stat.S_ISREG(read.st_mode) and os.path.samestat(read, written):
        raise DataError(f"{source if sink == '-' else sink}: is both the input and the output; write into another file")


@cli.command("report")
@run_option
@click.option("--plot", type=PNG, help="Also draw quality by iteration, as PNG.")
@click.option("--rl-plot", type=PNG, help="Also draw RL step by step, as PNG.")
def report_command(folder: Path, plot: Path | None, rl_plot: Path | None) -> None:
    """Draw report.html again from results.json and the stages' metrics."""
    from pit import report
    from pit.evaluate.schema import read_results
    from pit.report import plots
    from pit.report.metrics import read_metrics
    from pit.stages.graph import STAGES

    if plot is not None and rl_plot is not None and plot.resolve() == rl_plot.resolve():
        raise ConfigError(f"--rl-plot = {rl_plot}: is the file of --plot too; name another one")
    say(str(report.render(folder)))
    if plot is not None:
        say(str(plots.quality_png(read_results(folder), plot)))
    if rl_plot is not None:
        labels = {stage.name: stage.name.removeprefix("rl-") for stage in STAGES}
        say(str(plots.rl_png(read_metrics(folder), rl_plot, labels)))


@cli.command()
def env() -> None:
    """Print versions and devices, for a bug report."""
    import platform

    import jax

    from pit.evaluate.collect import versions

    say(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, version in versions().items():
        say(f"{name} {version}")
    say(f"devices: {', '.join(map(str, jax.devices()))}")
    say(f"compile cache: {os.environ['JAX_COMPILATION_CACHE_DIR']}")


cli.add_command(data)
cli.add_command(bench)
cli.add_command(export_command)
cli.add_command(plan_command)
cli.add_command(check)
cli.add_command(serve)
