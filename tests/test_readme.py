"""What the README shows, runs."""

import re
import shlex

import pytest
import torch
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_python_snippet_gives_the_shapes_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    shown = re.findall(r"^(\w+)(?:, (\w+))? = .*# (\[.*)$", code, re.MULTILINE)
    assert len(shown) >= 5
    for first, second, comment in shown:
        shapes = [list(map(int, s.split(", "))) for s in re.findall(r"\[([\d, ]+)\]", comment)]
        assert list(names[first].shape) == shapes[0], first
        if second:
            assert list(names[second].shape) == shapes[1], second
    assert names["labels"].dtype == torch.int32


@pytest.mark.parametrize("line", [line.strip() for line in README.splitlines() if line.startswith("    cast segment")])
def test_commands_parse(line):
    from cast.cli import _parser

    _parser().parse_args(shlex.split(line)[1:])


def test_options_exist():
    from cast.cli import _parser

    subparsers = next(action for action in _parser()._actions if action.dest == "command")
    known = subparsers.choices["segment"].format_help()
    for option in re.findall(r"`(--\w[\w-]*)", README):
        assert option in known, option


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_model_is_named():
    import cast

    sizes = [name.removeprefix("cast_") for name in cast.list_models("cast_*") if not re.search("deit|seg", name)]
    assert all(f"`cast_{size}`" in README for size in sizes)
    assert {f"cast_deit_{size}" for size in sizes} - {"cast_deit_mini"} == set(cast.list_models("cast_deit_*"))
