"""What docs/graph_pool.md and examples/ show, runs."""

import re
import runpy

import processes
import torch
from conftest import ROOT
from gpu_checks import assert_graph_replays, assert_no_synchronisation, needs_gpu

PAGE = (ROOT / "docs" / "graph_pool.md").read_text()
EXAMPLE = ROOT / "examples" / "graph_pool_anywhere.py"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_snippets_run_in_order_and_give_what_they_say(capsys):
    names = {}
    shown = []
    for code in BLOCKS:
        exec(compile(code, "graph_pool.md", "exec"), names)
        for name, comment in re.findall(r"^(\w+) = .*# (\[[\d, ]+\])", code, re.MULTILINE):
            assert list(names[name].shape) == list(map(int, comment[1:-1].split(", "))), name
            shown.append(name)
    assert len(shown) >= 5
    printed = re.findall(r"^print\(.*# (.*)$", PAGE, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == printed
    assert len(printed) == 3
    assert names["data"]["input_size"] == (3, 224, 224)
    assert "cast_small" in names["names"]
    program, pool, tokens = names["program"], names["pool"], names["tokens"]
    for found, expected in zip(program.module()(tokens), pool(tokens), strict=True):
        assert (found is None and expected is None) or torch.equal(found, expected)


def test_page_shows_the_example_as_it_is():
    code = EXAMPLE.read_text()
    shown = next(block for block in BLOCKS if "class PooledEncoder" in block).rstrip()
    assert shown in code
    body = shown[shown.index("class PooledEncoder") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 12


def test_example_prints_the_shapes_it_says(tmp_path):
    result = processes.run(runpy.run_path, str(EXAMPLE), None, "__main__", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == re.search(r"# (\(.*)$", EXAMPLE.read_text(), re.MULTILINE)[1]


def test_commands_exist():
    for module in re.findall(r"^    python -m bench\.(\w+)", PAGE, re.MULTILINE):
        assert (ROOT / "bench" / f"{module}.py").exists()


class TestOnTheGpu:
    pytestmark = needs_gpu

    @torch.no_grad()
    def test_example_runs_without_waiting_and_in_a_graph(self):
        names = {}
        exec(compile(EXAMPLE.read_text(), str(EXAMPLE), "exec"), names)
        model = names["PooledEncoder"]().eval().cuda()
        case, other = (torch.randn(2, 196, 192, device="cuda"),), (torch.randn(2, 196, 192, device="cuda"),)
        assert_no_synchronisation(model, case)
        assert_graph_replays(model, case, other)
