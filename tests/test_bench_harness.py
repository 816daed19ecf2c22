import json
import time

import pytest
import torch

from cast.bench.cli import PRESETS
from cast.bench.compare import compare, differing_facts
from cast.bench.harness import Timing, measure
from cast.bench.machine import machine
from cast.bench.models import check_name
from cast.bench.setting import KEY, Grid, Setting, presets
from cast.bench.table import Table, read_rows, read_timings, write_json


def test_a_known_sleep_is_measured():
    times = measure({"short": lambda: time.sleep(0.01), "long": lambda: time.sleep(0.05)}, least=5, most=5)
    assert 0.01 <= times["short"].p50 < 0.04  # a sleep is never shorter, and seldom much longer
    assert 0.05 <= times["long"].p50 < 0.09
    assert len(times["long"].samples) == 5


def test_calls_take_turns_and_none_always_goes_first():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    measure(calls, least=3, most=3, seconds=0.0, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"


def test_rounds_follow_the_budget(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))  # every run takes one second
    run = {"a": lambda: None, "b": lambda: None}
    assert len(measure(run, seconds=7, least=2, most=50)["a"].samples) == 7
    assert len(measure(run, seconds=7, least=9, most=50)["a"].samples) == 9
    assert len(measure(run, seconds=7, least=2, most=3)["b"].samples) == 3


def test_percentiles():
    time = Timing(tuple(float(i) for i in range(1, 11)))
    assert (time.p20, time.p50, time.p80) == pytest.approx((2.8, 5.5, 8.2))
    assert Timing((1.0, 2.0, 9.0)).p50 == 2.0
    assert Timing((4.0,)).p80 == 4.0


@pytest.mark.parametrize("options", [{"least": 0}, {"least": 5, "most": 4}])
def test_harness_refuses(options):
    with pytest.raises(ValueError, match="least"):
        measure({"a": lambda: None}, **options)
    with pytest.raises(ValueError, match="0 calls"):
        measure({})


def test_table_round_trip(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [{"a": 1, "text": 'comma, "quote"\nline', "none": ""}, {"a": 2.5, "b": "ü"}]
    table = Table(path)
    for i, row in enumerate(rows):
        table.add(row)
        assert len(read_rows(path)) == i + 1  # complete after every row
    expected = [{"a": "1", "text": 'comma, "quote"\nline'}, {"a": "2.5", "b": "ü"}]
    assert read_rows(path) == expected
    write_json(rows, tmp_path / "rows.json")
    assert read_rows(tmp_path / "rows.json") == expected
    Table(path).add({"c": 3})  # another process later
    assert read_rows(path) == [*expected, {"c": "3"}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "rows.json"]


def test_a_stop_while_writing_loses_nothing(tmp_path, monkeypatch):
    table = Table(tmp_path / "rows.csv")
    table.add({"a": 1})

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        table.add({"a": 2}, {"a": 3})
    assert read_rows(tmp_path / "rows.csv") == [{"a": "1"}]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("name", "text"), [("x.json", "{"), ("x.json", "{}"), ("x.csv", "a\n1,2\n")])
def test_a_broken_table_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"results|table"):
        read_rows(tmp_path / name)


def test_two_processes_share_a_table(tmp_path):
    first, second = Table(tmp_path / "rows.csv"), Table(tmp_path / "rows.csv")
    for i in range(3):
        first.add({"by": "first", "i": i})
        second.add({"by": "second", "i": i, "more": 1})
    assert len(read_rows(tmp_path / "rows.csv")) == 6
    first.add({"by": "first", "i": 9}, instead=lambda row: row["by"] == "first")
    assert [row["by"] for row in read_rows(tmp_path / "rows.csv")] == ["second"] * 3 + ["first"]


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match="Permission denied"):
        Table(tmp_path / "rows.csv")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write"):
        Table(tmp_path / "file" / "rows.csv")


@pytest.mark.parametrize("value", ["fast", "nan", "-1", "inf", ""])
def test_timings_to_compare_with_are_numbers(tmp_path, value):
    Table(tmp_path / "rows.csv").add({"p20_ms": 1.0, "p50_ms": 1.0, "p80_ms": value})
    with pytest.raises(ValueError, match="p80_ms"):
        read_timings(tmp_path / "rows.csv")
    write_json([{"a": 1}], tmp_path / "rows.json")
    with pytest.raises(ValueError, match="p50_ms"):
        read_timings(tmp_path / "rows.json")


def row(milliseconds, spread=0.01, **changes):
    setting = Setting("cast_small", 8, superpixels="given").row() | changes
    return setting | {
        "p50_ms": milliseconds,
        "p20_ms": milliseconds * (1 - spread),
        "p80_ms": milliseconds * (1 + spread),
    }


def test_a_planted_slowdown_is_found_and_nothing_is_not():
    assert [change.moved for change in compare([row(10.0)], [row(12.0)])] == [True]
    assert [change.moved for change in compare([row(12.0)], [row(10.0)])] == [True]  # faster has moved, too
    assert [change.moved for change in compare([row(10.0)], [row(10.0)])] == [False]
    assert [change.moved for change in compare([row(10.0)], [row(10.4)])] == [False]
    # what the runs themselves scatter by is no news
    assert [change.moved for change in compare([row(10.0, spread=0.1)], [row(12.0, spread=0.1)])] == [False]


def test_only_equal_settings_are_compared():
    assert compare([row(10.0, batch=1)], [row(12.0, batch=8)]) == []
    assert compare([{"model": "cast_small", "note": "missing"}], [row(1.0)]) == []
    text = {key: str(value) for key, value in row(10.0).items()}  # as read from a file
    assert compare([row(1.0), text], [row(12.0)])[0].before == 10.0  # the last of repeated rows


def test_machine_facts():
    facts = machine(["cast", "bench", "latency", "--out", "a b"])
    assert facts["torch"] == torch.__version__
    assert facts["command"] == "cast bench latency --out 'a b'"
    assert all(facts[name] for name in ("cpu", "cores", "threads", "python", "commit", "date"))
    assert differing_facts(facts, facts | {"torch": "1.0", "date": "x"}) == {"torch": (torch.__version__, "1.0")}
    json.dumps(facts)


def test_grid_gives_superpixels_to_those_that_take_them():
    grid = Grid(("cast_small", "published_small", "vit_small"), batches=(1, 31))
    groups = list(grid.groups())
    assert [len(group) for group in groups] == [3 + 2 + 1] * 2
    assert {s.superpixels for s in groups[0] if s.model == "vit_small"} == {"-"}
    assert {s.superpixels for s in groups[0] if s.model == "published_small"} == {"workers", "given"}
    assert [len({(s.size, s.batch) for s in group}) for group in groups] == [1, 1]
    assert tuple(groups[0][0].row()) == KEY


def test_grid_gives_quality_to_superpixels_that_are_made():
    (group,) = Grid(
        ("cast_small", "published_small"), batches=(2,), launches=("graph",), qualities=("fast", "best")
    ).groups()
    found = [(s.model, s.superpixels, s.quality, s.launch) for s in group]
    assert found[:4] == [
        ("cast_small", "made", "fast", "graph"),
        ("cast_small", "made", "best", "graph"),
        ("cast_small", "workers", "-", "graph"),
        ("cast_small", "given", "-", "graph"),
    ]
    assert {launch for model, _, _, launch in found if model == "published_small"} == {"eager"}  # it cannot be captured


@pytest.mark.parametrize("cuda", [True, False])
def test_presets_name_models_that_exist(cuda):
    assert set(presets(cuda)) == set(PRESETS)
    for grid in presets(cuda).values():
        for name in grid.models:
            check_name(name)
        settings = [setting for group in grid.groups() for setting in group]
        assert len(set(settings)) == len(settings)


@pytest.mark.parametrize(
    "values",
    [
        {"qualities": ("good",)},
        {"dtypes": ("fp8",)},
        {"launches": ("jit",)},
        {"batches": (0,)},
        {"superpixels": ()},
        {"sizes": (-1,)},
    ],
)
def test_grid_refuses(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Grid(("cast_small",), **values)
