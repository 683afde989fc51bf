"""The suite around the counter: the command and its baseline, timing and tuning, and peers."""

import json
from dataclasses import dataclass
from pathlib import Path

import click.testing
import jax
import numpy as np
import pytest

import pit_kernels
from pit.cli.bench import BenchError, bench, read_lengths, show
from pit_kernels.gap_reward.tiles import Tiles as GapTiles
from pit_kernels.microbench import Hot, Kernel, scenario, suite, tune, unavailable_reason
from pit_kernels.microbench.contenders import Contender, conforming, contenders, load_contender
from pit_kernels.microbench.hot_tiles import HotTile, hot_tile
from pit_kernels.microbench.plot import draw
from pit_kernels.microbench.problems import Job, Problem, class_problem, problems, program, rows
from pit_kernels.microbench.scenario import PLAN, Entry, Refresh, Step, stale, steps
from pit_kernels.microbench.suite import Outcome, Row, load, regressions, save
from pit_kernels.microbench.tables import markdown, write_table
from pit_kernels.microbench.timing import attention_flops, time_problem
from pit_kernels.three_way_attention.tiles import Tiles as AttentionTiles
from pit_kernels.workloads import HeadShape, gap_workload, path_lengths

needs_compiler = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))

SHAPE = HeadShape("small", 2, 2, 16)
TRIPLES = [(30, 20, 10), (12, 9, 14)]
SMALL = Problem("small", "three_way_attention", "two small trees", gap_workload(TRIPLES, 256, SHAPE))


def make_row(**changes):
    figures = {"us": 10.0, "cycles": 1000, "hbm_bytes": 5000, "complete": True, "kernels": []}
    figures.update(changes.pop("figures", {}))
    fields = {"operation": "three_way_attention", "problem": "p", "direction": "forward", "contender": "xla"}
    fields.update({"target": "v5e", "ours": True, "units": 2, "job": {}})
    return Row(**{**fields, **changes}, figures=figures)


def test_a_contender_without_trees_gets_their_paths():
    ours, peer = (contenders("three_way_attention")[name] for name in ("xla", "jax_splash"))
    tree_rows = rows(SMALL, ours, Job("small", "forward"))
    path_rows = rows(SMALL, peer, Job("small", "forward", row_length=512))
    assert (tree_rows > np.arange(256)).sum() == 30 + 3 * 20 + 3 * 10 + 12 + 3 * 9 + 3 * 14
    assert (
        (path_rows > np.arange(512)).sum() == sum(path_lengths(SMALL.workload, 0)) == 4 * (30 + 20 + 10 + 12 + 9 + 14)
    )
    assert SMALL.units == 2


def test_flops_are_those_of_the_visible_pairs():
    until = rows(SMALL, contenders("three_way_attention")["xla"], Job("small", "forward"))
    t = np.arange(until.shape[1])
    seen = (t[None, None, :] <= t[None, :, None]) & (t[None, :, None] < until[:, None, :]) & (until > t)[:, :, None]
    assert attention_flops(SMALL, "forward") == 2 * 2 * seen.sum() * 16 * 2
    assert attention_flops(SMALL, "both") == 3.5 * attention_flops(SMALL, "forward")


def test_every_problem_gives_a_program():
    for operation in ("three_way_attention", "token_logprob", "gap_reward"):
        for problem in problems(operation).values():
            for direction in ("forward", "both"):
                function, arguments = program(problem, contenders(operation)["xla"], Job(problem.name, direction))
                jax.eval_shape(function, *arguments)


def test_timing_takes_turns_and_names_what_does_not_compile():
    def broken(*arguments):
        raise ValueError("no room")

    outcome = Outcome()
    ready = [
        contenders("three_way_attention")["xla"],
        Contender("bad", "three_way_attention", frozenset({"trees"}), lambda *_: broken),
    ]
    time_problem(outcome, ready, SMALL, rounds=3)
    assert [row.direction for row in outcome.rows] == ["forward", "both"]
    for row in outcome.rows:
        low, high = row.figures["us_quartiles"]
        assert 0 < low <= row.figures["us"] <= high
        assert (row.figures["source"], row.figures["rounds"]) == ("wall", 3)
    assert outcome.left_out == [("bad on small", "ValueError: no room")] * 2


@dataclass(frozen=True)
class Tile:
    q: int


def test_tuning_keeps_the_best_and_says_why_others_fail(tmp_path):
    def clock(tile):
        if tile.q == 3:
            raise ValueError("no room\nin VMEM")
        return float(abs(tile.q - 4))

    heard = []
    tuned = tune.tune([Tile(3), Tile(8), Tile(5)], clock, heard.append)
    assert (tuned.best, tuned.us, tuned.why) == (Tile(5), [None, 4.0, 1.0], ["Tile(q=3): no room"])
    assert heard == ["no figure  Tile(q=3): no room", "4.0 us  Tile(q=8)", "1.0 us  Tile(q=5)"]
    path = tmp_path / "tiles.json"
    tune.keep("v5e", "long", tuned.best, path)
    tune.keep("v5e", "short", Tile(2), path)
    tune.keep("v5e", "short", Tile(1), path)
    assert json.loads(path.read_text()) == {"v5e": {"long": {"q": 5}, "short": {"q": 1}}}
    assert '    "long": {"q": 5},\n' in path.read_text()
    with pytest.raises(ValueError, match=r"^none of 1 candidates works: Tile\(q=3\): no room$"):
        tune.tune([Tile(3)], clock)


def test_the_present_tiles_stay_where_others_save_next_to_nothing():
    def best(saved):
        return tune.tune([Tile(1), Tile(2)], lambda tile: 1000.0 if tile.q == 1 else 1000.0 - saved).best

    assert (best(saved=4.0), best(saved=6.0)) == (Tile(1), Tile(2))


@pytest.mark.parametrize("operation", tune.STEPS)
def test_a_committed_table_of_tiles_is_as_the_tuner_writes_it(operation):
    text = tune.tiles_file(operation).read_text()
    assert tune._text(json.loads(text)) == text


def test_a_sweep_changes_one_size_at_a_time_and_no_size_beyond_its_rule():
    start = AttentionTiles(queries=128, keys=512, unroll=1, masked=2, short=1)
    choices = tune.candidates("three_way_attention", start)
    assert choices[0] == start
    assert [(t.queries, t.keys, t.unroll, t.masked, t.short) for t in choices[1:]] == [
        (256, 512, 1, 2, 1),
        (128, 256, 1, 2, 1),
        (128, 1024, 1, 2, 1),
        (128, 512, 2, 2, 1),
        (128, 512, 1, 1, 1),
        (128, 512, 1, 3, 1),
        (128, 512, 1, 2, 3),
    ]
    assert tune.candidates("gap_reward", GapTiles(128, 16, 16))[1:] == [
        GapTiles(256, 16, 16),
        GapTiles(128, 32, 16),
        GapTiles(128, 16, 32),
        GapTiles(128, 16, 64),
    ]


@pytest.mark.parametrize("operation", tune.STEPS)
def test_a_class_is_judged_on_problems_of_its_own_shape(operation):
    ours = contenders(operation)["pallas_tpu"]
    for name, judged_on in tune.shape_classes(operation).items():
        start = tune.present(operation, "v5e", name)
        for problem in judged_on:
            work = class_problem(operation, problem.removeprefix("class:"))
            _, arguments = program(work, ours, Job(problem, "forward", vars(start)))
            q, width = arguments[0], arguments[0].shape[-1]
            if operation == "three_way_attention":
                assert name == f"r{q.shape[1] // arguments[1].shape[1]}-h{width}-b{q.dtype.itemsize}"
            else:
                assert name == f"{q.dtype}-{width}"


def test_a_tuned_table_is_written_for_the_class_that_was_asked_for(tmp_path, monkeypatch):
    asked = answered(monkeypatch, lambda job: 100.0 + job.tiles["tokens"], tune)
    path = tmp_path / "tiles.json"
    words = ["tune", "--op", "gap_reward", "--class", "bfloat16-2304", "--target", "v6e", "--table", str(path)]
    result = click.testing.CliRunner().invoke(bench, words)
    assert result.exception is None, result.output
    start = tune.present("gap_reward", "v6e", "bfloat16-2304")
    assert {(job.problem, job.direction) for job in asked} == {("class:bfloat16-2304", "both")}
    assert json.loads(path.read_text())["v6e"]["bfloat16-2304"]["tokens"] == start.tokens // 2


def test_results_come_back_and_regressions_are_named(tmp_path):
    path = tmp_path / "kernels.json"
    save([make_row(), make_row(contender="jax_flash", ours=False)], path)
    save([make_row(target="v6e")], path)
    assert {row.key.split("/")[-2:][0] for row in load(path)} == {"xla", "jax_flash"}
    assert len(load(path)) == 3
    assert {"versions", "commit"} <= set(json.loads(path.read_text())["three_way_attention/p/forward/xla/v5e"])
    assert regressions([make_row(figures={"us": 10.2})], load(path)) == []
    slower = [make_row(figures={"us": 10.4}), make_row(contender="jax_flash", ours=False, figures={"us": 99.0})]
    assert regressions(slower, load(path)) == ["three_way_attention/p/forward/xla/v5e: us is 10.4, +4.0% of 10"]
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"is not a results file of the kernel suite"):
        load(path)


def test_the_table_goes_between_its_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- kernels table: begin -->\nold\n<!-- kernels table: end -->\nb\n")
    write_table(path, [make_row()])
    text = path.read_text()
    assert text.startswith("a\n<!-- kernels table: begin -->\nEstimated us per tree, three_way_attention:\n\n| prob")
    assert text.endswith("<!-- kernels table: end -->\nb\n")
    assert "old" not in text
    path.write_text("a")
    with pytest.raises(
        ValueError, match=r"has no place for the table; it must hold the lines <!-- kernels table: begin"
    ):
        write_table(path, [])


def test_tables_put_contenders_side_by_side_and_say_how_many_times_the_best_other_ours_is():
    ours = {"contender": "pallas_tpu"}
    table_rows = [
        make_row(),
        make_row(**ours, figures={"us": 4.0}),
        make_row(contender="jax_flash", figures={"us": 8.0}),
    ]
    table_rows += [make_row(target="v4", **ours), make_row(contender="pallas_tpu_btnh", figures={"us": 1.0})]
    lines = markdown(table_rows).splitlines()
    assert lines[2].split(" | ")[3:] == ["pallas_tpu", "jax_flash", "xla", "pallas_tpu_btnh", "ours / best other |"]
    assert lines[4:] == [
        "| p | forward | v4 | 5.00 |  |  |  |  |",
        "| p | forward | v5e | 2.00 | 4.00 | 5.00 | 0.50 | 0.50 |",
    ]
    tiles = [make_row(figures={"tile": {"bundles": 1200.4}}), make_row(**ours, figures={"tile": {"bundles": 900.3}})]
    tiles[0].figures["sweep"] = [{"tile": None}, {"tile": {"bundles": 1800.0}}, {"tile": {"bundles": 1200.4}}]
    first, best = markdown(tiles).split("\n\nBundles")
    assert "| p | forward | v5e | 900 | 1,800 | 0.50 |" in first
    assert "| p | forward | v5e | 900 | 1,200 | 0.75 |" in best
    assert "Estimated" not in markdown(tiles)


def test_a_ratio_on_trees_is_taken_apart():
    us = {"pallas_tpu": 3.0, "pallas_tpu_paths": 6.0, "pallas_tpu_btnh": 4.5, "jax_splash": 15.0, "xla": 20.0}
    known = [make_row(contender=name, figures={"us": value}) for name, value in us.items()]
    assert "Factors" not in markdown([row for row in known if row.contender != "pallas_tpu_paths"])
    # 3 / 15 is 1/2 by sharing and 2/5 by the rest; tiles of 80 bundles against 100 leave 1/2 to skipping.
    assert markdown(known).splitlines()[-1] == "| p | forward | v5e | 0.20 | 0.50 |  |  | 1.50 |"
    for name, bundles in (("pallas_tpu", 80.0), ("jax_splash", 100.0)):
        known.append(make_row(problem="tile-512-partial", contender=name, figures={"tile": {"bundles": bundles}}))
    assert markdown(known).splitlines()[-1] == "| p | forward | v5e | 0.20 | 0.50 | 0.80 | 0.50 | 1.50 |"


def test_queries_come_scaled_to_peers_whose_users_fold_the_scale():
    known = contenders("three_way_attention")
    assert [name for name, contender in known.items() if contender.scaled_queries] == ["jax_splash", "tokamax"]
    seen = []

    def attend(q, k, v, visible_until):
        seen.append(float(q[0, 0, 0, 0]))
        return q

    x, until = np.full((1, 8, 1, 4), 6.0, np.float32), np.full((1, 8), 8, np.int32)
    for name in ("jax_splash", "jax_flash"):
        conforming(known[name], attend)(x, x, x, until)
    assert seen == [3.0, 6.0]


def test_ours_on_paths_gets_the_rows_of_the_peers():
    known = contenders("three_way_attention")
    job = Job("small", "forward", row_length=512)
    on_paths, peer = (rows(SMALL, known[name], job) for name in ("pallas_tpu_paths", "jax_splash"))
    np.testing.assert_array_equal(on_paths, peer)


def kernel(bundles, opcode="custom-call", **use):
    hot = Hot(bundles, 10, {name: units / bundles for name, units in use.items()})
    return Kernel("k", opcode, 1, bundles, hot=hot)


def test_tiles_of_a_hot_piece_follow_from_the_work_of_matrix_units_and_exponentials():
    # 1,024 passes of the matrix units per tile on v5e and 512 on v6e; 256 registers of exponentials backward, with
    # two operations each on v4.
    assert hot_tile([kernel(2354, MXU=1536), kernel(4010, MXU=3840, EUP=768)], "both", "v4") == HotTile(2673.3, (1.5,))
    three = kernel(3375, MXU=3072)
    assert hot_tile([kernel(9, "fusion"), three], "forward", "v5e") == HotTile(1125.0, (3.0,))
    assert hot_tile([kernel(952, MXU=512)], "forward", "v6e") == HotTile(952.0, (1.0,))
    assert hot_tile([three, kernel(7877, MXU=7680, EUP=768)], "both", "v5e") == HotTile(2625.7, (3.0,))
    # Two backward kernels go over every tile each.
    two = [three, kernel(1000, MXU=1000, EUP=128), kernel(1500, MXU=1400, EUP=256)]
    assert hot_tile(two, "both", "v5e") == HotTile(3500.0, (0.5, 1.0))
    assert hot_tile([kernel(2000, MXU=1150)], "forward", "v5e") is None
    assert hot_tile([kernel(9, "fusion")], "forward", "v5e") is None


def test_rows_for_the_hot_tile_are_wholly_or_nowhere_wholly_visible():
    known = contenders("three_way_attention")
    full, partial = (problems("three_way_attention")[f"tile-512-{kind}"] for kind in ("full", "partial"))
    assert (rows(full, known["pallas_tpu"], Job("", "forward")) == 4096).all()
    ours = rows(partial, known["pallas_tpu"], Job("", "forward"))
    assert (ours > np.arange(4096)).all()
    assert (ours.reshape(32, 128).min(axis=1) == 128 * np.arange(1, 33)).all()
    theirs = rows(partial, known["tokamax"], Job("", "forward"))
    assert theirs.tolist() == [[4092] * 4092 + [0] * 4]


def test_peers_get_segment_ids_only_where_rows_need_them():
    seen = []

    def make(tiles, interpret):
        return lambda q, k, v, until: seen.append(until) or q

    peer = Contender("peer", "three_way_attention", frozenset(), make, "BNTH", plain_rows=True)
    for name in ("tile-512-full", "causal-4096", "tile-512-partial", "packed-2048"):
        function, arguments = program(problems("three_way_attention")[name], peer, Job(name, "forward"))
        function(*arguments)
    assert [until is None for until in seen] == [True, True, False, False]


def test_lengths_are_read_and_a_bad_line_is_shown(tmp_path):
    path = tmp_path / "lengths.txt"
    path.write_text('100 50 40\n\n{"prompt": 10, "better": 5, "worse": 4}\n7,8,9\n')
    assert read_lengths(path) == [(100, 50, 40), (10, 5, 4), (7, 8, 9)]
    path.write_text("100 50 40\n100 0 40\n")
    with pytest.raises(BenchError, match=r"line 2 is '100 0 40'; it must hold three lengths above 0"):
        read_lengths(path)


def test_tables_and_plot_of_rows(tmp_path, capsys):
    rows = [make_row(), make_row(contender="jax_flash", ours=False, figures={"us": 30.0, "notes": ["f: 2 DMAs"]})]
    show(Outcome(rows, [("tokamax", "tokamax is not installed: pip install tokamax")]), timed=False)
    printed = capsys.readouterr().out
    assert "left out: tokamax: tokamax is not installed: pip install tokamax" in printed
    assert "not counted: waits for DMAs" in printed
    assert "not known about jax_flash: f: 2 DMAs" in printed
    draw(rows, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").read_bytes()[:4] == b"\x89PNG"


def test_a_users_contender_is_a_function_of_a_module():
    assert load_contender("gap_reward", "pit_kernels:leaf_scores").name == "pit_kernels:leaf_scores"
    with pytest.raises(ValueError, match=r"^contender is 'pit_kernels:nothing'; it must name a function, as package"):
        load_contender("gap_reward", "pit_kernels:nothing")


def test_the_command_refuses_what_it_does_not_know():
    for words, message in (
        (["--workload", "nothing"], "--workload is 'nothing'; for three_way_attention it must be one of tile-512-full"),
        (
            ["--peers", "nobody"],
            "--peers names 'nobody'; it must be one of jax_flash, jax_splash, tokamax, xla, pallas",
        ),
        (
            ["--class", "r1"],
            "--class is 'r1'; for three_way_attention it must be one of r3-h64-b2, r2-h256-b2, r4-h128",
        ),
    ):
        result = click.testing.CliRunner().invoke(bench, ["tune" if "--class" in words else "kernels", *words])
        assert isinstance(result.exception, BenchError)
        assert message in str(result.exception)


@needs_compiler
@pytest.mark.slow
def test_the_command_counts_keeps_and_checks(tmp_path):
    out = tmp_path / "kernels.json"
    words = ["kernels", "--op", "gap_reward", "--peers", "xla", "--target", "v5e"]
    result = click.testing.CliRunner().invoke(bench, [*words, "--json", str(out)])
    assert result.exception is None, result.output
    assert {row.direction for row in load(out)} == {"forward", "both"}
    table = json.loads(out.read_text())
    for row in table.values():
        row["figures"]["cycles"] //= 2
    out.write_text(json.dumps(table))
    result = click.testing.CliRunner().invoke(bench, [*words, "--check", str(out)])
    assert isinstance(result.exception, BenchError)
    assert "gap_reward/gemma-2-2b/forward/xla/v5e: cycles is" in str(result.exception)


def answered(monkeypatch, answers, module=suite):
    """Replaces the worker; gives the jobs it was asked."""
    asked = []

    def ask(contender, target, jobs, lengths=None, keep_dumps=None):
        asked.extend(jobs)
        return [{"us": answers(job), "complete": True, "kernels": []} for job in jobs]

    monkeypatch.setattr(module, "ask_worker", ask)
    return asked


def test_a_peers_row_length_and_tiles_are_swept_and_then_remembered(monkeypatch):
    asked = answered(monkeypatch, lambda job: abs(job.row_length - 2000) + job.tiles["q"] - job.tiles["kv"])
    outcome = suite.run_suite("three_way_attention", ["jax_splash"], ["v5e"], ["packed-4096"], judge=False)
    # Three row lengths, then two more tiles at the best of them, for each direction.
    assert len(asked) == 2 * (3 + 2)
    assert [row.job["row_length"] for row in outcome.rows] == [2048, 2048]
    assert all(row.job["tiles"] == {"q": 512, "kv": 1024} for row in outcome.rows)
    assert len(outcome.rows[0].figures["sweep"]) == 5
    asked.clear()
    again = suite.run_suite(
        "three_way_attention", ["jax_splash"], ["v5e"], ["packed-4096"], judge=False, swept=outcome.rows
    )
    assert len(asked) == 2
    assert [row.job for row in again.rows] == [row.job for row in outcome.rows]


@pytest.mark.parametrize(("counted", "kept"), [(9.0, False), (11.0, True)])
def test_a_peer_has_no_figure_where_what_could_not_be_counted_may_be_better(monkeypatch, counted, kept):
    def ask(contender, target, jobs, lengths=None, keep_dumps=None):
        return [
            {"us": counted, "complete": False, "notes": ["a branch"], "kernels": []}
            if job.row_length == 1024
            else {"us": 10.0, "complete": True, "kernels": []}
            for job in jobs
        ]

    monkeypatch.setattr(suite, "ask_worker", ask)
    outcome = suite.run_suite("three_way_attention", ["jax_splash"], ["v5e"], ["packed-4096"], judge=False)
    left_out = [(f"jax_splash on packed-4096, {direction}, v5e", "a branch") for direction in ("forward", "both")]
    assert [row.figures["us"] for row in outcome.rows] == ([10.0, 10.0] if kept else [])
    assert outcome.left_out == ([] if kept else left_out)


def test_a_contender_that_does_not_conform_or_is_absent_gets_no_figure(monkeypatch):
    asked = answered(monkeypatch, lambda job: 1.0)
    monkeypatch.setattr(suite, "judged_apart", lambda operation, name: "deep: out has error 2")
    outcome = suite.run_suite("three_way_attention", ["jax_splash"], ["v5e"], ["causal-4096"])
    assert (outcome.rows, asked) == ([], [])
    assert outcome.left_out == [("jax_splash", "does not conform: deep: out has error 2")]


def test_the_plan_names_problems_and_contenders_that_there_are():
    for entry in PLAN:
        assert set(entry.problems) <= set(problems(entry.operation))
        assert set(entry.contenders) <= set(contenders(entry.operation))
    planned = steps(PLAN)
    assert len(set(planned)) == len(planned)
    assert steps(PLAN, targets=["v4"], contenders=["tokamax"], problems=["packed-2048"]) == [
        Step("three_way_attention", "packed-2048", "v4", "tokamax")
    ]
    with pytest.raises(ValueError, match=r"^the plan has nothing for problems \['p'\], targets \[\] and contenders"):
        steps(PLAN, problems=["p"])


def test_a_figure_depends_on_files_that_there_are_and_on_no_other_operation():
    package = Path(pit_kernels.__file__).parent
    for operation in tune.STEPS:
        known = contenders(operation)
        ours = suite.sources(operation, known["xla"])
        assert all((package / path).exists() for path in ours)
        assert not set(ours) & (set(tune.STEPS) - {operation})
        for peer in known.values():
            if not peer.ours:
                assert set(suite.sources(operation, peer)) < set(ours) - {operation}


def test_the_scenario_resumes_where_it_stopped(tmp_path, monkeypatch):
    asked = answered(monkeypatch, lambda job: 1.0)
    judged = []
    monkeypatch.setattr(suite, "judged_apart", lambda *names: judged.append(names))
    clean = {"versions": {"jax": "1"}, "commit": "abc"}
    for module in (suite, scenario):
        monkeypatch.setattr(module, "origin", lambda operation, name: dict(clean))
    path = tmp_path / "kernels.json"
    planned = steps([Entry("gap_reward", ("gemma-2-2b",), ("v5e", "v6e"), ("xla",))])
    assert stale(planned, path) == planned
    refresh = Refresh(path)
    assert {row.direction for row in refresh.run(planned[0])} == {"forward", "both"}
    assert stale(planned, path) == planned[1:]
    refresh.run(planned[1])
    assert stale(planned, path) == []
    assert (len(asked), judged) == (4, [("gap_reward", "xla")])
    clean["commit"] = "abc with changes"
    assert stale(planned, path) == planned


def test_the_scenario_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "judged_apart", lambda *names: "deep: out has error 2")
    heard = []
    assert Refresh(tmp_path / "kernels.json", heard.append).run(Step("gap_reward", "gemma-2-2b", "v5e", "xla")) == []
    assert heard == ["left out: xla: deep: out has error 2"]
    answered(monkeypatch, lambda job: 1.0)
    assert len(Refresh(tmp_path / "kernels.json", judge=False).run(Step("gap_reward", "gemma-2-2b", "v5e", "xla"))) == 2
