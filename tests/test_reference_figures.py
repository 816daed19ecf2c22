"""The recorded figures of the published model, with its own checker: nothing may fail and nothing may be skipped."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT.parent / "shared" / "fixtures"
VARIANTS = (
    "cast_small",
    "cast_tiny",
    "cast_tiny_train",
    "cast_deit_tiny",
    "cast_seg_pretrain_tiny",
    "cast_seg_tiny",
    "cast_seg_deit_tiny",
)
FUNCTIONS = ("segment_mean", "label_resize", "fps", "graph_pool", "superpixels", "hierarchy", "moco")

pytestmark = pytest.mark.skipif(
    not (FIXTURES / "check_oracle.py").exists(), reason="needs the recorded figures in ../shared/fixtures"
)


@pytest.fixture(scope="module")
def run_checker(tmp_path_factory):
    """`run_checker(adapter, variants, functions, dtype)` -> {group: [(what, ok, detail)]}."""
    spec = importlib.util.spec_from_file_location("check_oracle", FIXTURES / "check_oracle.py")
    checker = importlib.util.module_from_spec(spec)

    def run(adapter, variants, functions, dtype):
        report = tmp_path_factory.mktemp("figures") / "rows.json"
        arguments = ["--adapter", str(ROOT / f"tests/{adapter}.py"), "--variants", *variants]
        checker.main([*arguments, "--functions", *functions, "--dtype", dtype, "--json", str(report)])
        groups = {}
        for row in json.loads(report.read_text()):
            groups.setdefault(row["group"], []).append((row["what"], row["ok"], row["detail"]))
        return groups

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "dont_write_bytecode", True)  # beside the figures
        spec.loader.exec_module(checker)
        made = {}

        def once(tag, shape, rnd=checker.C.rnd):
            """A network's numbers, which follow from their names, for its other precision too."""
            key = (tag, tuple(shape))
            if key not in made:
                made[key] = rnd(tag, shape)
            return made[key].clone()

        patch.setattr(checker.C, "rnd", once)
        yield run


@pytest.fixture(scope="module")
def rows(run_checker):
    """One run of the checker over everything."""
    pytest.importorskip("cv2", reason="the checker compares superpixels with OpenCV's version at hand")
    return run_checker("reference_adapter", VARIANTS, FUNCTIONS, "both")


# How many comparisons each group holds: a checker that compares less has not checked.
COUNTS = {
    "fn:segment_mean": 16,
    "fn:label_resize": 7,
    "fn:fps": 85,
    "fn:graph_pool": 84,
    "fn:superpixels": 9,
    "fn:hierarchy": 2,
    "fn:moco": 951,
    "cast_small [float64]": 264,
    "cast_tiny [float64]": 179,
    "cast_tiny_train [float64]": 191,
    "cast_deit_tiny [float64]": 177,
    "cast_seg_pretrain_tiny [float64]": 182,
    "cast_seg_tiny [float64]": 182,
    "cast_seg_deit_tiny [float64]": 181,
}


@pytest.mark.parametrize("group", COUNTS)
def test_every_comparison_holds(rows, group):
    failed = [(what, detail) for what, ok, detail in rows[group] if ok is False]
    skipped = [(what, detail) for what, ok, detail in rows[group] if ok is None]
    assert not failed, failed[:10]
    assert not skipped, skipped[:10]
    assert len(rows[group]) == COUNTS[group]


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_agrees_but_for_near_ties(rows, variant):
    """Where two tokens are nearly as far, rounding may sample the other one; the checker leaves out what follows."""
    group = rows[f"{variant} [float32]"]
    assert not [(what, detail) for what, ok, detail in group if ok is False]
    assert sum(ok is True for _, ok, _ in group) > 20


def test_the_checker_ran_all_groups_and_no_other(rows):
    assert set(rows) == set(COUNTS) | {f"{variant} [float32]" for variant in VARIANTS}


def test_models_find_the_published_number_of_superpixels(run_checker):
    """With ``compat="published"`` and more superpixels than labels: every figure, gradients and statistics included."""
    tiny = [variant for variant in VARIANTS if variant != "cast_small"]
    groups = run_checker("compat_adapter", tiny, ["hierarchy"], "float64")
    for variant in tiny:
        group = groups[f"{variant} [float64]"]
        assert not [(what, detail) for what, ok, detail in group if ok is not True], variant
        assert len(group) == COUNTS[f"{variant} [float64]"]
