"""What docs/models.md shows, runs, and it names every model."""

import re

import pytest
import torch
from conftest import ROOT

from cast.models.registry import CONFIGS, TIMM_NAMES

PAGE = (ROOT / "docs" / "models.md").read_text()
SIZES = ("small", "small_deep", "base", "base_deep")


@pytest.fixture(scope="module")
def table():
    """{model name: what its row says of the output}."""
    rows = {}
    for line in re.findall(r"^\| `.*", PAGE, re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3:
            for name in re.findall(r"`([^`]+)`", cells[0]):
                rows |= {name.format(size=size): cells[2] for size in SIZES}
    return rows


def test_every_model_is_named_and_no_other(table):
    assert set(table) == set(CONFIGS) | set(TIMM_NAMES)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_as_the_table_says(table, name):
    from cast import create_model

    config = CONFIGS[name]
    with torch.device("meta"):
        model = create_model(name).eval()
        image = torch.zeros(2, 3, 512, 512, dtype=torch.uint8)
        labels = torch.zeros(2, 512, 512, dtype=torch.int32)
        out = model(image) if config.kind == "vit" else model(image, labels, 900)
    symbols = {"B": 2, "N": 900, "C": config.embed_dim, "H": 512, "W": 512, "1 + N": 901}
    (shape,) = re.findall(r"`\[(.*?)\]`", table[name])
    assert out.shape == tuple(symbols.get(s) or int(s) for s in shape.split(", "))


def test_recipes_are_the_defaults():
    for line in re.findall(r"^\| `.*", PAGE, re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 6:
            continue
        first = re.findall(r"`([^`]+)`", cells[0])[0].replace("*", "small")
        config = CONFIGS[first]
        assert config.img_size == int(cells[1])
        if config.kind == "vit":
            continue
        number, bins, iterations = cells[2].split(", ")
        number = config.img_size**2 // 256 if number == "one per 256 pixels" else int(number)
        superpixels = config.superpixels
        assert (superpixels.num_superpixels, superpixels.bins, superpixels.iterations) == (
            number, int(bins), int(iterations))  # fmt: skip
        assert config.num_clusters == tuple(map(int, cells[3].split(", ")))
        assert config.pos_embed == cells[4].split()[0].replace("-", "")


def test_snippets_give_the_shapes_they_say():
    names, checked = {}, 0
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        with torch.no_grad():
            exec(compile(code, "docs/models.md", "exec"), names)
        for variable, shape in re.findall(r"^(\w+) = .*# \[([\d, ]+)\]", code, re.MULTILINE):
            assert list(names[variable].shape) == list(map(int, shape.split(", "))), variable
            checked += 1
    assert checked >= 10
    assert {name.split(".")[0] for name in names["missing"]} == {"decoder"}
    assert names["again"].config.num_classes == 10
