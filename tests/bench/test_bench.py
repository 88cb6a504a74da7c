"""The benchmark runs, from the C programs to the pictures; and its arithmetic is right."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from smtpproxy.cluster import leases, store
from tests.bench import campaign, lease, machine, markdown, report, sizing
from tests.bench.__main__ import ROOT, main
from tests.bench.contenders import all_contenders
from tests.bench.measure import Bench, Chain, RunError
from tests.bench.native import FLAGS, build
from tests.bench.plots import Panel, Series, lines
from tests.bench.results import CPU_US, Results, Run
from tests.bench.scenarios import SCENARIOS, Kind, Scenario, named
from tests.bench.store_simulation import CallCost, simulate
from tests.bench.svg import Picture
from tests.bench.usage import Meter, memory_of
from tests.support.processes import free_port
from tests.support.programs import command

HERE = Path(__file__).parent
SVG = "{http://www.w3.org/2000/svg}"


def run(*argv: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a command of the benchmark."""
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *map(str, argv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def texts(picture: str) -> list[str]:
    """Return all texts in a picture, in order."""
    return [each.text or "" for each in ElementTree.fromstring(picture).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def programs() -> Path:
    """The directory of the built C programs."""
    command("cc", "gcc")
    return build()


@pytest.fixture
def bench(programs: Path) -> Bench:
    """A bench for very short runs."""
    return Bench.here(programs, seconds=0.1)


@pytest.fixture(scope="module")
def measured(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of a very short measurement."""
    assert programs
    out = tmp_path_factory.mktemp("results")
    options = ("--only", "haproxy,smtpproxy", "--scenario", "S1,distant-10")
    done = run(*options, "--reps", "1", "--seconds", "0.1", "--quiet", "0", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "one small message" in done.stdout
    (picture,) = out.glob("*.svg")
    assert "smtpproxy" in picture.read_text()
    (file,) = out.glob("*.json")
    return campaign.load(file)


@pytest.mark.long
def test_the_command_measures_and_writes_what_it_found(measured: Results) -> None:
    assert [run for run in measured.runs if run.error or run.failed or run.violations] == []
    there = {"haproxy", "smtpproxy"} - set(measured.skipped)
    assert {(run.scenario, run.contender) for run in measured.runs} == {
        (scenario, contender) for scenario in ("small", "distant-10") for contender in there
    }
    assert measured.machine["cpu"]
    assert measured.versions["smtpproxy"].startswith("smtpproxy ")


@pytest.mark.long
def test_a_client_far_away_waits_four_times_for_its_message_and_no_more(measured: Results) -> None:
    distant = named("distant-10")
    (run,) = measured.good(distant, "smtpproxy")
    assert (run.mode, run.waits, run.messages) == ("pipelined", 4, 1)
    assert run.session_s >= 0.5  # five round trips: the connection's is one


@pytest.mark.long
def test_a_missing_contender_is_left_out_with_its_reason(programs: Path, tmp_path: Path) -> None:
    assert programs
    done = run("--beside", f"gone={tmp_path}/python", "--only", "gone", "--out", tmp_path)
    assert done.returncode == 1
    assert "gone is left out:" in done.stderr
    (file,) = tmp_path.glob("*.json")
    assert f"{tmp_path}/python is missing" in campaign.load(file).skipped["gone"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "nobody"), "no nobody; there are haproxy, smtpproxy"),
        (("--scenario", "S9"), "no S9; there are S1 (small)"),
        (("--beside", "before"), "NAME=PYTHON is wanted, not before"),
        (("report", "--readme", str(HERE / "core.py")), "has no place for it"),
    ],
)
def test_a_wrong_option_is_reported_before_anything_is_measured(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "raise_limits", lambda: None)  # they are this process's, too
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.output.split())


def test_the_c_programs_are_built_without_a_warning(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert programs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert {file.name for file in build((*FLAGS, "-Werror")).iterdir()} == {
        "loadgen",
        "strictsink",
        "delayrelay",
    }


def test_the_mta_counts_commands_that_come_early_and_loses_them(bench: Bench) -> None:
    """The check of contenders finds a fault: a client that pipelines without PIPELINING."""
    (direct,) = (each for each in all_contenders() if each.name == "direct")
    chain = Chain(bench, direct)
    with chain, pytest.raises(RunError, match="stalled in group 2 after 1 of 3 replies"):
        chain.load(SCENARIOS[0], "--sessions", 1, "--forced", "--patience", 2)
    assert chain.counted["violations"] > 0
    assert chain.counted["messages"] == 0


def test_sessions_that_are_held_open_send_and_stay(bench: Bench) -> None:
    (ours,) = (each for each in all_contenders() if each.name == "smtpproxy")
    held = Scenario(short="", name="held", sentence="", kind=Kind.HELD, at_once=20)
    run = bench.measure(ours, held)
    assert run.messages >= 20
    assert (run.failed, run.open_sessions, run.violations) == (0, 20, 0)
    assert run.cpu_s is not None
    assert run.resident_kib > 1000


def test_sessions_that_cannot_be_opened_are_reported(bench: Bench) -> None:
    (direct,) = (each for each in all_contenders() if each.name == "direct")
    with Chain(bench, direct) as chain:
        chain.port = free_port()
        held = chain.holding(named("small"), 2)
        with pytest.raises(RunError, match=r"^0 of 2 sessions .* refused"), held:
            pass


def test_cpu_and_memory_of_this_process_are_measured() -> None:
    meter = Meter(os.getpid())
    kept = bytes(range(256)) * 100_000
    while sum(meter.cpu()) < 0.02:
        sum(kept[:100_000])
    memory = memory_of(os.getpid())
    assert memory.processes >= 1
    assert memory.peak >= memory.resident > 25_000


def results(**ratios: float) -> Results:
    """Return results of two contenders in all of the report's scenarios, without a measurement."""
    scenarios = [*report.COSTS, report.IDLE, *map(report.distant, report.RECIPIENTS)]
    found = Results(
        command="python -m tests.bench report",
        date="2026-01-31 12:00:00",
        machine={"cpu": "A CPU", "cpus": "2", "kernel": "Linux 6", "python": "3.11.7"},
        versions={"smtpproxy": "smtpproxy 1.0"},
        skipped={},
        seconds=2.0,
        repetitions=2,
        reference="haproxy",
        scenarios=scenarios,
        labels={"haproxy": "HAProxy", "smtpproxy": "smtpproxy", "direct": "no proxy"},
    )
    for scenario in scenarios:
        for repetition in range(2):
            for name, ratio in {"haproxy": 1.0, "direct": 1.0, **ratios}.items():
                run = Run(scenario=scenario.name, contender=name, repetition=repetition)
                run.messages, run.seconds, run.session_s = 10, 2.0, ratio
                run.cpu_s = None if name == "direct" else 0.001 * ratio * (1 + repetition)
                run.resident_kib, run.before_kib = 3_000, 1_000
                run.open_sessions = 1000 if scenario.kind is Kind.IDLE else 0
                run.mode = "pipelined" if name == "smtpproxy" else "lockstep"
                found.runs.append(run)
    return found


def test_ratios_are_taken_within_a_repetition() -> None:
    """The machine was half as fast in the second one, for both alike."""
    found = results(smtpproxy=1.5)
    ratio = found.ratio(SCENARIOS[0], "smtpproxy", CPU_US)
    assert ratio == pytest.approx((1.5, 1.5, 1.5))
    spread = found.spread(SCENARIOS[0], "smtpproxy", CPU_US)
    assert spread
    assert spread == pytest.approx((225, 150, 300))
    assert spread.width == pytest.approx(2 / 3)


def test_the_report_writes_the_readmes_part_and_two_pictures(tmp_path: Path) -> None:
    readme, pictures = tmp_path / "README.md", tmp_path / "deploy"
    pictures.mkdir()
    begin, end = markdown.markers(report.PART)
    readme.write_text(f"before\n{begin}\nof old\n{end}\nafter\n")
    for _ in range(2):  # the second time it replaces what the first has written
        report.write(results(smtpproxy=1.5), readme, pictures)
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "of old" not in text
    assert text.count("**smtpproxy**") == 1
    row = next(line for line in text.splitlines() if "**smtpproxy**" in line)
    assert row.count("1.50 \N{MULTIPLICATION SIGN}") == 5
    assert "`python -m tests.bench report` on 2026-01-31, A CPU, 2 CPUs" in text
    for file in (report.COST_FILE, report.SAVING_FILE):
        assert f"(deploy/{file})" in text
        assert "2026-01-31: python -m tests.bench report" in texts((pictures / file).read_text())


def test_the_picture_of_the_cost_has_a_bar_for_each_contender() -> None:
    written = texts(report.cost_picture(results(smtpproxy=7.0)))
    assert "HAProxy" in written
    assert "smtpproxy ✓" in written
    assert written.count("7.00") == written.count("1.00") == len(report.COSTS)


def test_the_sizing_page_has_a_picture_and_a_table_for_each_sweep(tmp_path: Path) -> None:
    page = tmp_path / "sizing.md"
    shutil.copy(ROOT / "deploy" / "sizing.md", page)
    found = results()
    found.scenarios = [
        *(scenario for _, scenario, _ in sizing.OF_A_CORE),
        *map(sizing.SWEEPS[0].scenario, (1, 100)),
        *map(sizing.SWEEPS[1].scenario, (1, 10)),
        *map(sizing.SWEEPS[2].scenario, (1000, 100_000_000)),
    ]
    found.runs = [
        Run(scenario=scenario.name, contender=contender, messages=1, seconds=1, cpu_s=0.001,
            peak_kib=1024, resident_kib=1024, open_sessions=2)
        for scenario in found.scenarios
        for contender in sizing.WORKERS
    ]  # fmt: skip
    written = sizing.write(found, page)
    assert [file.name for file in written] == [
        *(f"sizing-{sweep.name}.svg" for sweep in sizing.SWEEPS),
        "sizing.md",
    ]
    assert "| messages a second, one in each session | 1,000 | 1,000 |" in page.read_text()
    assert "| memory of an idle session, KiB | 512 | 512 |" in page.read_text()
    assert "| idle sessions, as far as CPU goes | - | - |" in page.read_text()
    assert "| 100 MB | 1,000 | 1.00 | 1,000 | 1.00 |" in page.read_text()
    assert "1 worker, from 1 to 100 (100 times as much): CPU per message" in page.read_text()
    assert "in proportion" in texts(written[1].read_text())


CALL = CallCost(store_us=100, supervisor_us=300, network_us=200)


def test_a_store_with_little_to_do_gets_two_calls_for_each_session() -> None:
    found = simulate(CALL, replicas=2, backends=1, rate=50, seconds=20)
    assert 1.9 < found.calls <= 2.05
    assert found.wait_ms == pytest.approx(0.6)
    assert found.store_use == pytest.approx(50 * found.calls * 100e-6, rel=0.1)
    assert found == simulate(CALL, replicas=2, backends=1, rate=50, seconds=20), "repeatable"


def test_calls_to_a_full_store_speak_for_more_sessions_and_no_session_waits_for_ever() -> None:
    """A session waits for the call that is on its way, and for its own: at most two rounds."""
    found = simulate(CALL, replicas=20, backends=1, rate=20_000, seconds=1)
    assert found.store_use > 0.98
    assert found.calls < 0.6
    assert 20 * 0.1 < found.wait_p99_ms < 2 * 20 * 0.1 + 2 * 0.6


def test_the_sizing_page_has_a_part_on_leases(tmp_path: Path) -> None:
    page = tmp_path / "sizing.md"
    shutil.copy(ROOT / "deploy" / "sizing.md", page)
    found = results()
    found.runs = [
        Run(scenario=scenario.name, contender=name, messages=1, cpu_s=0.001, session_s=0.004)
        for scenario in lease.SCENARIOS
        for name in ("slots", "leases")
    ]
    lease.write(found, [lease.Cost(replicas, 0.6, 1.5, CALL) for replicas in lease.REPLICAS], page)
    text = page.read_text()
    assert "| 20 | 0.60 | 1.50 | 300 | 100 |" in text
    assert "a message of 2 KB to 10 recipients | 4.00 | 4.00 | 1,000 | 1,000 |" in text
    assert "at so many sessions a second of all replicas: 5,000 with 2 replicas" in text
    assert "50 ms, from which on the store counts as away, with 20 replicas of 12 backends" in text
    simulated = text.split("\nA simulation with these costs")[1].splitlines()
    row = next(line for line in simulated if line.startswith("| 1,000 |"))
    assert row.count("%") == len(lease.REPLICAS)


def test_leases_are_measured_with_a_real_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "REPLICAS", (2,))
    for module, name in ((leases, "CALL_S"), (leases, "LIMIT_S"), (store, "LIMIT_S")):
        monkeypatch.setattr(module, name, 5.0)  # on a busy machine an answer takes long
    for name in ("CONNECT_LIMIT_S", "VALID_S"):
        monkeypatch.setattr(store, name, 5.0)
    monkeypatch.setattr(store.Store.run, "__defaults__", (5.0,))
    (cost,) = lease.measure(sorted(os.sched_getaffinity(0)), 0.1)
    assert 0.1 < cost.wait_ms <= cost.wait_p99_ms, "it asked the store"
    assert 1 < cost.call.store_us < 10_000
    assert 1 < cost.call.supervisor_us < 100_000


def test_lines_end_with_their_names_none_over_another() -> None:
    panel = Panel(
        "", "x", [Series("a", [(0, 1), (4, 2)], "ours"), Series("b", [(0, 1), (4, 2)], "")]
    )
    picture = ElementTree.fromstring(lines("title", (), [panel]))
    ends = {
        each.text: float(each.attrib["y"])
        for each in picture.iter(f"{SVG}text")
        if each.text in ("a: 2.00", "b: 2.00")
    }
    assert len(ends) == 2
    assert abs(ends["a: 2.00"] - ends["b: 2.00"]) >= 12


def test_a_long_note_takes_several_lines_of_a_picture() -> None:
    note = "python -m tests.bench report " + "--beside another=.venv/bin/python " * 5
    panel = Panel("", "x", [Series("a", [(0, 1), (4, 2)], "ours")])
    _, *found = texts(lines("title", [note], [panel]))
    assert max(map(len, found)) < 70
    assert " ".join(found).startswith(note.strip())


def test_a_picture_escapes_what_is_written_in_it() -> None:
    picture = Picture(10, 10, "<title>", "a & b")
    picture.text(1, 2, "<&>")
    assert texts(picture.render()) == ["<&>"]


def test_the_benchmarks_readme_names_all_scenarios() -> None:
    text = (HERE / "README.md").read_text()
    for scenario in SCENARIOS:
        assert f"| {scenario.short} | `{scenario.name}` | {scenario.sentence} |" in text
    for part in (report.PART, *markdown.markers(report.PART)):
        assert part in text


@pytest.mark.long
def test_results_can_be_read_by_other_programs(measured: Results, tmp_path: Path) -> None:
    file = campaign.save(measured, tmp_path)
    runs = json.loads(file.read_text())["runs"]
    assert runs[0]["scenario"] == "small"
