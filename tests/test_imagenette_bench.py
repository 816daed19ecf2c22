"""The imagenette experiment on a miniature of its data: every piece, going on after a stop, and its recipes."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

from bench import imagenette
from bench import imagenette_masks as masks
from bench.imagenette_last_pool import train_last_pool
from bench.imagenette_tree import link_tree
from cast.evaluate import kmeans_hierarchy
from cast.models import ViTConfig, create_model, from_pretrained
from cast.train.batch import Batch
from cast.train.networks import build_network, embed
from cast.train.settings import read_settings

WNIDS = ("n01440764", "n02102040")
RECIPES = sorted((ROOT / "recipes").glob("imagenette*.toml"))
SMALL = {
    "train": {"task": "supervised", "img_size": 32, "epochs": 1, "warmup_epochs": 0, "batch": 8, "workers": 0,
              "rand_augment": 0.0, "repeats": 1, "ema": 0.0, "drop_path": 0.0},
    "cast": {"model": "cast_mini", "model_overrides": {"embed_dim": 16, "num_heads": 2, "depths": [1, 1],
             "num_clusters": [8, 4], "superpixels": {"num_superpixels": 16}}},
    "vit": {"model": "vit_conv_small", "model_overrides": {"embed_dim": 16, "num_heads": 2, "depth": 1}},
    "probe": {"img_size": 32, "augment": False, "epochs": 1, "batch": 8, "lr": 0.1, "workers": 0},
    "evaluate": {"img_size": 32, "whole": True, "kinds": ["butterfly", "person"], "counts": [8, 4], "every": 1},
    "last_pool": {"epochs": 6, "batch": 8, "lr": 3e-3, "weight_decay": 0.0},
    "joint": {"last_pool_weight": 1.0},
}  # fmt: skip

MOCO = SMALL | {"train": {"task": "moco", "img_size": 32, "epochs": 1, "warmup_epochs": 0, "batch": 8, "workers": 0,
                          "hidden_dim": 8, "dim": 8}}  # fmt: skip


def blob(random, height, width, box, color):
    """A noisy photo with a rectangle of a colour, and its mask."""
    pixels = random.integers(0, 120, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    mask[box[0] : box[1], box[2] : box[3]] = 1
    pixels[mask > 0] = random.integers(-20, 20, (mask.sum(), 3)) + color
    return pixels.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders like imagenette and objects, with 20 and 8 images."""
    random = np.random.default_rng(0)
    data, objects = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("objects")
    for folder in (data / "images", objects / "images", objects / "masks"):
        folder.mkdir()
    rows = []
    for i in range(20):
        kind, split = i % 2, "train" if i < 16 else "val"
        pixels, _ = blob(random, 32, 32, (4, 24, 6, 26), (220, 60, 40) if kind else (40, 80, 220))
        Image.fromarray(pixels).save(data / "images" / f"{split}_{i}.jpg")
        rows.append({"id": f"{split}_{i}", "split": split, "wnid": WNIDS[kind], "class_idx": kind, "class": "x"})
    write(data / "labels.csv", rows)
    rows = []
    for i, (kind, mask_kind, split) in enumerate(
        [("butterfly", "foreground", "val")] * 3
        + [("person", "foreground", "val")] * 2
        + [("butterfly", "foreground", "train"), ("person", "none", "val"), ("car", "partial", "val")]
    ):
        size = (50, 32) if kind == "person" else (32, 41 + i)
        pixels, mask = blob(random, *size, (8, 26, 6, 20), (220, 200, 40))
        Image.fromarray(pixels).save(objects / "images" / f"{kind}_{i}.jpg")
        Image.fromarray(mask).save(objects / "masks" / f"{kind}_{i}.png")
        rows.append({"id": f"{kind}_{i}", "split": split, "super": kind, "mask_kind": mask_kind})
    write(objects / "labels.csv", rows)
    return data, objects


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def changed(**tables):
    return {name: values | tables.get(name, {}) for name, values in SMALL.items()}


@pytest.fixture
def bench(places, tmp_path, capsys):
    """`bench("--only", "train", recipe=...)` -> exit code, what was printed, and the rows that are saved."""

    def run(*options, recipe=SMALL, seeds=(0,)):
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        data, objects = places
        folders = [
            "--data",
            data,
            "--objects",
            objects,
            "--out",
            tmp_path / "out",
            "--recipe",
            tmp_path / "recipe.json",
        ]
        code = imagenette.main([*map(str, folders), "--device", "cpu", "--seeds", *map(str, seeds), *options])
        return code, capsys.readouterr().out, imagenette.Table(tmp_path / "out" / "results.csv").rows

    return run


def test_every_piece_is_done_once(bench, tmp_path, monkeypatch):
    code, text, rows = bench(seeds=(0, 1))
    assert code == 0
    done = {(row["piece"], row["model"], row["seed"]) for row in rows}
    both = [(model, seed) for model in ("cast", "vit") for seed in "01"]
    assert done == {(piece, *x) for piece in ("random", "train", "probe", "segment") for x in both} | {
        ("floors", name, "0") for name in ("all", "central box", "superpixels", "colours")
    }
    assert all(row["commit"] and row["torch"] and row["cpu"] for row in rows)
    assert all(0 <= float(row["top1"]) <= 1 for row in rows if row["piece"] == "probe")
    scored = [row for row in rows if row["piece"] == "segment" and row["model"] == "cast" and row["seed"] == "0"]
    assert [(row["masks"], row["segments"], row["images"]) for row in scored] == [
        (kind, level, count)
        for kind, count in (("butterfly", "3"), ("person", "2"))
        for level in ("superpixels", "8", "4")
    ]
    share = next(row for row in rows if row["model"] == "all" and row["masks"] == "person")
    assert float(share["best_match"]) == pytest.approx(18 * 14 / (50 * 32))
    trained = next(row for row in rows if row["piece"] == "train" and row["model"] == "cast")
    assert float(trained["training_loss"]) != float(trained["loss"])  # the latter is of held-out photos
    assert (trained["step"], trained["epoch"]) == ("2", "1.0")
    assert "| vit, probe | 2 | " in text
    assert "| cast, segment | 4 | 2 | " in text
    assert " ± " in text

    monkeypatch.setattr(imagenette, "train", lambda *_: pytest.fail("trained again"))
    before = (tmp_path / "out" / "results.csv").read_bytes()
    code, again, _ = bench(seeds=(0, 1))
    assert code == 0
    assert again.splitlines() == [line for line in text.splitlines() if not line.startswith("==")]
    assert (tmp_path / "out" / "results.csv").read_bytes() == before
    # with other settings of the scores, training is not done again, and old scores are not shown
    code, text, more = bench(recipe=changed(evaluate={"whole": False, "kinds": ["person"]}))
    assert code == 0
    assert len(more) > len(rows)
    assert "butterfly" not in text


def test_the_last_pool_is_scored_before_and_after(bench):
    code, text, rows = bench("--only", "train", "last-pool")
    assert code == 0
    rows = [row for row in rows if row["piece"] == "last-pool"]
    assert [(row["state"], row["masks"], row["segments"]) for row in rows] == [
        (state, kind, "4") for state in ("before", "after") for kind in ("butterfly", "person")
    ]
    assert float(rows[-1]["loss"]) < float(rows[-1]["first_loss"])
    assert "| cast, last-pool before | 4 | 1 | " in text


@pytest.mark.parametrize("recipe", [SMALL, MOCO], ids=["supervised", "moco"])
def test_a_model_whose_last_pool_learns_with_it_is_scored(bench, tmp_path, recipe):
    code, text, rows = bench("--only", "train", "joint", recipe=recipe)
    assert code == 0
    figures, *scores = (row for row in rows if row["piece"] == "joint")
    assert float(figures["loss"]) > 0
    assert [(row["masks"], row["segments"]) for row in scores] == [
        (kind, level) for kind in ("butterfly", "person") for level in ("superpixels", "8", "4")
    ]
    assert "| cast, joint | 4 | 1 | " in text
    start, joint = (
        from_pretrained(next((tmp_path / "out" / "runs").glob(f"{piece}-cast-*")) / "model").stages[-1].pool
        for piece in ("train", "joint")
    )
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), joint.parameters(), strict=True)]
    assert any(moved)


def test_a_self_supervised_model_gets_the_classifier_of_its_probe(bench):
    code, text, rows = bench("--only", "train", "probe", "last-pool", recipe=MOCO)
    assert code == 0
    assert any(row["piece"] == "last-pool" and row["state"] == "after" for row in rows)
    assert "| cast, train |" not in text  # there is no accuracy


def test_what_is_not_finished_is_gone_on_with(bench, monkeypatch):
    code, text, rows = bench("--only", "train", "--minutes", "0.001")
    assert (code, rows) == (75, [])
    assert "run again to continue" in text
    limits = []

    def train(config, folder):
        limits.append((config.time_limit, folder))
        done = len(limits) > 1
        return {
            "status": "done" if done else "time limit",
            "step": 2,
            "epoch": 1.0,
            "loss": 1.0,
            "best": None,
            "metrics": {},
        }

    monkeypatch.setattr(imagenette, "train", train)
    assert bench("--only", "train", "--minutes", "3")[::2] == (75, [])
    assert 0 < limits[0][0] < 3
    code, text, rows = bench("--only", "train", "--minutes", "3")
    assert code == 0
    assert [row["model"] for row in rows] == ["cast", "vit"]
    assert limits[1][1] == limits[0][1] != limits[2][1]


def test_pieces_that_come_too_early_say_so(bench):
    with pytest.raises(ValueError, match="do the piece train first"):
        bench("--only", "segment")
    with pytest.raises(ValueError, match="expected the tables cast, evaluate"):
        bench(recipe={"train": {}})


def scored_start(experiment, model, monkeypatch):
    """The network whose label maps the piece ``random`` hands to `Experiment.score`."""
    scored = []
    with monkeypatch.context() as patch:
        patch.setattr(masks, "from_cast", lambda network: network)
        patch.setattr(masks, "from_vit", lambda network, *_: network)
        patch.setattr(imagenette.Experiment, "score", lambda self, segment: scored.append(segment))
        experiment.random(model, 0)
    (network,) = scored
    assert not network.training
    return dict(network.named_parameters())


def test_training_trains_and_random_weights_are_those_it_starts_from(bench, places, tmp_path, monkeypatch):
    """The probe and the scores are of the trained model, and ``random`` is the model before the first step."""
    still = changed(train={"lr": 0.0, "warmup_lr": 0.0, "min_lr": 0.0})
    for recipe, same in ((still, True), (SMALL, False), (MOCO | {"train": MOCO["train"] | {"lr": 0.0}}, True)):
        assert bench("--only", "random", "train", recipe=recipe)[0] == 0
        experiment = imagenette.Experiment(namespace(places, tmp_path))
        assert experiment.recipe == recipe
        for model in ("cast", "vit"):
            start = scored_start(experiment, model, monkeypatch)
            trained = dict(experiment.trained("train", model, 0).named_parameters())
            assert set(trained) <= set(start)
            assert ("head.weight" in trained) is (recipe["train"]["task"] == "supervised")
            assert all(torch.equal(start[name], p) for name, p in trained.items()) is same


def namespace(places, tmp_path):
    data, objects = places
    return imagenette.argparse.Namespace(
        data=data, objects=objects, out=tmp_path / "out", recipe=tmp_path / "recipe.json", minutes=0.0, device="cpu"
    )


def test_the_tree_links_every_photo_and_is_made_once(places, tmp_path, monkeypatch):
    data, _ = places
    tree = link_tree(data, tmp_path / "tree")
    names = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.jpg"))
    assert len(names) == 20
    assert names[0] == f"train/{WNIDS[0]}/train_0.jpg"
    assert (tree / names[0]).resolve() == (data / "images" / "train_0.jpg").resolve()
    assert sorted(path.name for path in (tree / "val").iterdir()) == list(WNIDS)
    marked = tree / "train" / "marked"
    marked.mkdir()
    assert link_tree(data, tree) == tree
    assert marked.exists()  # nothing was made again
    (tree / "source.txt").write_text("other photos")

    def no_links(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.symlink", no_links)
    link_tree(data, tree)
    assert not marked.exists()
    assert not (tree / names[0]).is_symlink()
    assert (tree / names[0]).read_bytes() == (data / "images" / "train_0.jpg").read_bytes()
    assert len(list(tree.rglob("*.jpg"))) == 20


def test_photos_are_those_with_whole_masks(places):
    photos = masks.read_photos(places[1], ["butterfly", "person"], 64, True, 1)
    assert [photo.kind for photo in photos] == ["butterfly"] * 3 + ["person"] * 2
    assert [photo.image.shape for photo in photos] == [(64, 80, 3)] * 2 + [(64, 80, 3), (96, 64, 3), (96, 64, 3)]
    assert [photo.mask.shape for photo in photos] == [(32, 41), (32, 42), (32, 43), (50, 32), (50, 32)]
    assert all(photo.mask.sum() == 18 * 14 for photo in photos)
    assert len(masks.read_photos(places[1], ["butterfly"], 64, True, 2)) == 2
    for photo in masks.read_photos(places[1], ["person"], 64, False, 1):
        assert photo.image.shape == (64, 64, 3)
        assert photo.mask.shape == (28, 28)  # 7 / 8 of the short side
    with pytest.raises(ValueError, match="no validation photos with masks of horse"):
        masks.read_photos(places[1], ["horse"], 64, True, 1)


def test_labels_land_on_the_pixels_that_they_are_of(places):
    """The photo's colour tells its mask: segments by colour must score high, on any scale."""

    def by_color(images):
        yellow = (images[:, 0] > 150) & (images[:, 2] < 150)
        return torch.stack([yellow.long(), torch.zeros_like(yellow).long()], 1), ["2", "1"]

    for size, whole in ((64, True), (64, False), (32, True)):
        photos = masks.read_photos(places[1], ["butterfly", "person"], size, whole, 1)
        rows = masks.score(photos, by_color, torch.device("cpu"), lambda: None, batch=2)
        assert [(row["masks"], row["segments"]) for row in rows] == [
            (k, n) for k in ("butterfly", "person") for n in "21"
        ]
        for row in rows:
            share = float(np.mean([photo.mask.mean() for photo in photos if photo.kind == row["masks"]]))
            assert row["present"] == int(row["segments"])
            if row["segments"] == "2":
                assert row["majority"] == row["best_match"] > (0.9 if size == 64 else 0.75)
            else:
                assert row["best_match"] == pytest.approx(share)


def test_scoring_gives_up_between_batches(places):
    photos = masks.read_photos(places[1], ["butterfly", "person"], 32, True, 1)
    sizes = []

    def segment(images):
        sizes.append(len(images))
        return torch.zeros(len(images), 1, 32, 32, dtype=torch.int64), ["1"]

    def check():
        if len(sizes) == 2:
            raise imagenette.OutOfTime

    with pytest.raises(imagenette.OutOfTime):
        masks.score(photos, segment, torch.device("cpu"), check, batch=2)
    assert sizes == [2, 1]


def test_floors():
    images = torch.randint(0, 50, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 0, 10:30, 20:60] += 180
    truth = images[:, 0] >= 180
    found = {name: segment(images) for name, segment in masks.floors(8).items()}
    assert all(maps.shape == (2, 1, 64, 96) for maps, _ in found.values())
    assert [names for _, names in found.values()] == [["1"], ["2"], ["8+"], ["8"]]
    box = found["central box"][0][0, 0]
    assert box[16:48, 24:72].all()
    assert box.sum() == 32 * 48
    assert not found["all"][0].any()
    assert 8 <= int(found["superpixels"][0].max()) + 1 <= 12
    colours = found["colours"][0][:, 0]
    assert int(colours.max()) < 8
    assert not set(colours[truth].tolist()) & set(colours[~truth].tolist())


class FakeViT(nn.Module):
    """Tokens are the mean colours of patches; the class token is far from all."""

    config = ViTConfig(img_size=64, embed_dim=8, num_heads=1)

    def forward_features(self, images):
        tokens = nn.functional.avg_pool2d(images.float() - 127, 16).flatten(2).mT
        return torch.cat([torch.full_like(tokens[:, :1], 1e6), tokens], 1)


def test_tokens_of_a_vit_keep_their_places():
    images = torch.full((1, 3, 64, 96), 20, dtype=torch.uint8)
    images[..., :32, :48] = 250
    maps, names = masks.from_vit(FakeViT(), (4, 2), seed=1)(images)
    assert names == ["4", "2"]
    assert maps.shape == (1, 2, 64, 96)
    bright = maps[0, 1] == maps[0, 1, 0, 0]
    inside = torch.zeros(64, 96, dtype=torch.bool)
    inside[:32, :48] = True
    assert (bright == inside).float().mean() > 0.95
    tokens = FakeViT().forward_features(images)[:, 1:].mT.reshape(1, 3, 4, 6)
    assert torch.equal(maps, kmeans_hierarchy(tokens, (64, 96), (4, 2), 1))


def test_training_the_last_pool_changes_it_alone(places, tmp_path):
    tree = link_tree(places[0], tmp_path / "tree")
    torch.manual_seed(0)
    small = SMALL["cast"]["model_overrides"]
    model = create_model("cast_mini", img_size=32, num_classes=2, **small).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    losses = train_last_pool(model, tree / "train", lambda: None, seed=3, **SMALL["last_pool"])
    assert torch.equal(state, torch.get_rng_state())
    assert len(losses) == 6
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("stages.1.pool.") for name in changed)
    assert not any(p.requires_grad for p in model.stages[-1].pool.parameters())
    assert not any(module.training for module in model.modules())


def test_the_last_pool_sees_what_training_would_show_it(places):
    """Of one image: the same loss as that of ``last_pool_weight`` in `cast train`."""
    torch.manual_seed(0)
    model = create_model("cast_mini", img_size=32, num_classes=2, **SMALL["cast"]["model_overrides"]).eval()
    images = masks.read_photos(places[1], ["person"], 32, False, 1)
    images = torch.from_numpy(np.stack([photo.image for photo in images])).permute(0, 3, 1, 2)
    with torch.no_grad():
        _, pooled = embed(model, Batch(images[:, None], torch.zeros(2)), last_pool=True)
        last = model.run(images, None, None, last_pool=False)[-1]
        assert torch.equal(model.norm(model.stages[-1].pool(last.tokens, last.cls).tokens.mean(1)), pooled)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_compare_like_with_like(path, places, tmp_path):
    arguments = namespace(places, tmp_path)
    arguments.recipe = path
    experiment = imagenette.Experiment(arguments)
    cast, vit = (experiment.training(model, 5) for model in ("cast", "vit"))
    assert cast.seed == vit.seed == 5
    same = {"model": "", "model_overrides": {}}
    assert cast.to_dict() | same == vit.to_dict() | same
    networks = [build_network(config, num_classes=10) for config in (cast, vit)]
    assert networks[0].config.embed_dim == networks[1].config.embed_dim
    assert sum(networks[0].config.depths) == networks[1].config.depth
    patches = (cast.img_size // 16) ** 2
    assert networks[0].count_superpixels(cast.img_size, cast.img_size) == patches
    evaluate = experiment.recipe["evaluate"]
    assert list(networks[0].config.num_clusters) == evaluate["counts"]
    assert evaluate["counts"][-1] == 8
    assert evaluate["img_size"] == cast.img_size
    assert sum(p.numel() for p in networks[0].parameters()) * 2 < 16e6  # bytes in half precision
    experiment.config("probe", 0, experiment.recipe["probe"])
    assert experiment.settings("train", "cast") != experiment.settings("train", "vit")


def test_every_recipe_is_whole():
    assert [path.stem for path in RECIPES] == ["imagenette", "imagenette_cpu", "imagenette_short"]
    assert imagenette.RECIPE in RECIPES
    assert all(set(read_settings(path)) == imagenette.TABLES for path in RECIPES)


def test_means_and_spread():
    rows = [
        {
            "piece": "segment",
            "model": "cast",
            "seed": str(i),
            "segments": "8",
            "masks": kind,
            "majority": x,
            "best_match": "1",
        }
        for i, x in enumerate(("0.2", "0.4"))
        for kind in ("butterfly", "person")
    ]
    rows.append({"piece": "probe", "model": "vit", "seed": "0", "top1": "0.5"})
    text = "\n".join(imagenette.report(rows))
    assert "| vit, probe | 1 | 50.0 |" in text
    assert "| cast, segment | 8 | 2 | 30.0 ± 14.1 | 100.0 ± 0.0 | 30.0 ± 14.1 | 100.0 ± 0.0 |" in text
    assert "| | segments | seeds | butterfly majority | butterfly best match | person majority |" in text


def test_a_saved_model_is_what_pieces_load(bench, places, tmp_path):
    assert bench("--only", "train")[0] == 0
    folders = sorted((tmp_path / "out" / "runs").iterdir())
    assert [folder.name.rsplit("-", 1)[0] for folder in folders] == ["train-cast-0", "train-vit-0"]
    assert from_pretrained(folders[0] / "model").config.num_classes == 2


def test_the_figures_of_the_docs_are_those_of_the_rows():
    """Means over seeds, as `report` prints them."""
    with (ROOT / "bench" / "results" / "imagenette_cpu.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    page = (ROOT / "docs" / "training.md").read_text()

    def figure(name, piece, model, **wanted):
        wanted |= {"piece": piece, "model": model}
        group = [row for row in rows if wanted.items() <= row.items() and name in row]
        assert len(group) == 3  # seeds
        return imagenette._percent(group, name)

    def pair(kind, *run, **wanted):
        wanted |= {"masks": kind, "segments": "8"}
        return " / ".join(figure(name, *run, **wanted) for name in ("majority", "best_match"))

    for title, model in (("CAST, its own 8 segments", "cast"), ("ViT, k-means on its tokens", "vit")):
        classes = [figure("top1", piece, model) for piece in ("train", "probe")]
        masks = [pair(kind, "segment", model) for kind in ("butterfly", "person")]
        assert " | ".join([f"| {title}", *classes, *masks]) + " |" in page
    masks = [pair(kind, "joint", "cast") for kind in ("butterfly", "person")]
    assert " | ".join(["| CAST, its last pool trained too", figure("top1", "joint", "cast"), "", *masks]) + " |" in page
    for kind in ("butterfly", "person"):
        assert pair(kind, "last-pool", "cast", state="after") in page
