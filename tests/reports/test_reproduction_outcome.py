"""Differences, controls, guides, determinism and order of a reproduction against closed forms."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from robustly.reports.reproduction.controls import Controls, control_answers
from robustly.reports.reproduction.determinism import repetition, spread, weights_hash
from robustly.reports.reproduction.differences import difference, paired, points, unpaired
from robustly.reports.reproduction.guides import guide_rows
from robustly.reports.reproduction.order import order_of, order_words
from robustly.reports.reproduction.settings import settings_beside
from robustly.reports.reproduction.verdict import reproduction_verdict
from robustly.reports.run import Training
from robustly.reports.tables.evaluations import EvaluatedRun
from robustly.reports.tables.paper_results import RunResult, result_table
from robustly.reports.tables.paper_tables import PaperRow, PaperTable
from robustly.statistics import Proportion


def of(name: str, clean: list[int], aa: list[int] | None = None, suspected: bool = False) -> list[RunResult]:
    """Results of runs with so many hits of 1,000 images, and of 100 for AutoAttack."""
    attacked = aa or [50] * len(clean)
    return [
        RunResult(
            Path(f"{name}-{seed}"),
            shares={"clean": Proportion(hits, 1000), "aa": Proportion(held, 100)},
            suspected=suspected,
        )
        for seed, (hits, held) in enumerate(zip(clean, attacked, strict=True))
    ]


def row(name: str, results: list[RunResult], published: dict[str, float] | None = None) -> PaperRow:
    return PaperRow("", name, tuple(result.run for result in results), published or {})


def answers_of(guided: list[RunResult], at_ce: list[RunResult], at_kl: list[RunResult]):
    results = {result.run: result for result in [*guided, *at_ce, *at_kl]}
    rows = Controls(row("guided DYNAT", guided), row("PGD-AT", at_ce), row("AT-KL", at_kl))
    return control_answers(rows, results, "aa")


def test_a_difference_over_seeds_has_two_standard_errors() -> None:
    found = difference(of("a", [950, 960, 970]), of("b", [900, 900, 900]), "clean")
    assert found is not None
    assert found.over == "seeds"
    assert found.share == pytest.approx(0.06)
    assert found.high - found.share == pytest.approx(2 * 0.01 / 3**0.5)
    assert found.words == "+6.00 points (2 standard errors over 3 seeds: 1.15)"


def test_a_paired_difference_is_the_interval_of_agresti_and_min() -> None:
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:30], second[10:32] = True, True  # 10 of the first only, 2 of the second only
    found = paired(first, second)
    assert found.share == pytest.approx(0.08)
    half = 1.959964 * (13 / 102 - (8 / 102) ** 2) ** 0.5 / 102**0.5
    assert (found.low, found.high) == pytest.approx((8 / 102 - half, 8 / 102 + half))
    same = paired(first, first)
    assert same.low < 0 < same.high


def test_an_unpaired_difference_is_the_interval_of_newcombe() -> None:
    found = unpaired(Proportion(56, 70), Proportion(48, 80))
    assert (found.share, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert found.words == "+20.00 points (95 % interval +5.24 to +33.39, over 70 and 80 images, not paired)"


def test_points_have_a_sign_and_no_negative_zero() -> None:
    assert [points(share) for share in (0.0123, -0.0123, -0.00001)] == ["+1.23", "\u22121.23", "+0.00"]


@pytest.mark.parametrize(
    ("guided", "at_ce", "at_kl", "outcomes", "said"),
    [
        ([960, 961, 962], [930, 931, 932], [960, 962, 961], (True, True), "replicates at this scale"),
        ([960, 961, 962], [930, 931, 932], [940, 941, 942], (True, False), "alone does not explain it"),
        ([930, 931, 932], [930, 932, 931], [930, 931, 932], (False, True), "does not replicate"),
        ([900, 901, 902], [930, 931, 932], [930, 931, 932], (False, False), "does not replicate"),
        ([930, 950, 970], [930, 931, 932], [940, 941, 942], (False, True), "does not replicate"),
    ],
)
def test_rules_decide_over_seeds(guided, at_ce, at_kl, outcomes, said) -> None:
    found = answers_of(of("g", guided), of("c", at_ce), of("k", at_kl))
    assert (found.trade_off.outcome, found.cause.outcome) == outcomes
    assert ("there is no cause to find" in found.cause.sentence) == (not outcomes[0])
    verdict = reproduction_verdict(found, [])
    assert said in verdict.sentence
    assert verdict.sound


def test_one_seed_decides_nothing() -> None:
    found = answers_of(of("g", [960]), of("c", [900, 901]), of("k", [960]))
    assert [one.outcome for one in found.every] == [None] * 4
    assert all(one.sentence.endswith("One seed: no decision.") for one in found.every)
    assert "+6.00 points (95 % interval" in found.trade_off.sentence
    verdict = reproduction_verdict(found, [])
    assert verdict.sentence.startswith("One seed, so the trade-off is not decided")
    assert "is 6.0 points above that of PGD-AT" in verdict.sentence
    equal = answers_of(of("g", [900]), of("c", [900]), of("k", [960]))
    assert "is equal to that of PGD-AT, which may be chance" in reproduction_verdict(equal, []).sentence
    assert not verdict.sound


def test_missing_and_suspected_rows_decide_nothing() -> None:
    missing = [RunResult(Path("g-0"), reason="not run yet")]
    found = answers_of(missing, of("c", [900]), of("k", [900]))
    assert found.trade_off.sentence == "No decision: no clean accuracy of guided DYNAT."
    assert not reproduction_verdict(found, []).sound
    seeds = [900, 901, 902]
    masked = answers_of(of("g", seeds, suspected=True), of("c", seeds, [10, 11, 12]), of("k", seeds))
    assert masked.trade_off.outcome is False
    assert masked.robust[0].outcome is None
    assert "masking is suspected for guided DYNAT" in masked.robust[0].sentence
    assert control_answers(Controls(), {}, "aa") is None
    only = control_answers(Controls(guided=row("a", [])), {}, "aa")
    assert only is not None
    assert "does not have both rows" in only.cause.sentence


def test_guides_are_warned_of_below_60_per_cent() -> None:
    accuracies = {"low": [0.1, 0.59], "late": [0.4, 0.9], "good": [0.7, 0.8], "none": [np.nan, np.nan]}
    trainings = {Path(name): Training({"guide_accuracy": np.array(one)}) for name, one in accuracies.items()}
    rows = [PaperRow("", name, (Path(name),), {}) for name in accuracies]
    rows += [PaperRow("", "again", (Path("good"),), {}), PaperRow("", "both", (Path("low"), Path("good")), {})]
    found = {one.name: one for one in guide_rows(rows, trainings)}
    assert list(found) == ["low", "late", "good", "both"]
    assert [found[name].warning for name in ("low", "late", "good")] == [
        "below 60 % to the end: many labels are wrong",
        "below 60 % in 1 of 2 epochs",
        "",
    ]
    assert (found["both"].first, found["both"].lowest, found["both"].seeds) == (pytest.approx(0.4), 0.1, 2)
    doubts = reproduction_verdict(None, [], tuple(found.values())).doubts
    assert doubts == ("The guide labels fewer than 60 % of the training images correctly: low.",)


def write_repeated(folder: Path, weights: float, losses: list[float], seed: int = 0, note: str = "") -> Path:
    folder.mkdir()
    tensors = {"a": np.full((2, 3), weights, np.float32), "b": np.arange(4)}
    save_file(tensors, folder / "model.safetensors", {"note": note})
    rows = "".join(f"{epoch + 1},{loss!r}\n" for epoch, loss in enumerate(losses))
    (folder / "metrics.csv").write_text(f"epoch,train_loss\n{rows}")
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    return folder


def test_a_repetition_compares_weights_and_losses(tmp_path: Path) -> None:
    first = write_repeated(tmp_path / "first", 0.5, [2.0, 1.0])
    same = write_repeated(tmp_path / "same", 0.5, [2.0, 1.0], note="another")
    assert weights_hash(first) == weights_hash(same)
    found = repetition(first, same)
    assert found.identical is True
    assert found.sentences[1] == "The training losses of all 2 epochs are identical."
    other = write_repeated(tmp_path / "other", np.nextafter(np.float32(0.5), np.float32(1)), [2.0, 1.25])
    found = repetition(first, other)
    assert found.identical is False
    assert found.sentences[1] == "The training losses differ by up to 0.25."
    assert "not deterministic" in reproduction_verdict(None, [], repeated=found).doubts[0]
    seeds = repetition(first, write_repeated(tmp_path / "seeds", 0.5, [2.0], seed=1))
    assert seeds.identical is None
    assert "seeds 0 and 1" in seeds.sentences[0]
    assert repetition(first, tmp_path / "missing").identical is None


def test_a_run_with_other_settings_or_threads_repeats_nothing(tmp_path: Path) -> None:
    first = write_repeated(tmp_path / "first", 0.5, [2.0])
    steps = write_repeated(tmp_path / "steps", 0.25, [1.0])
    (steps / "config.yaml").write_text("seed: 0\nmethod: {inner: {steps: 3}}\n")
    found = repetition(first, steps)
    assert (found.identical, found.sentences) == (
        None,
        ("The two runs have other settings (method): no repetition.",),
    )
    wide = write_repeated(tmp_path / "wide", 0.25, [1.0])
    for run, threads in ((first, 1), (wide, 2)):
        (run / "status.json").write_text(json.dumps({"state": "finished", "threads": threads}))
    found = repetition(first, wide)
    assert (found.identical, found.sentences) == (None, ("The two runs had 1 and 2 threads: no repetition.",))


def test_a_copy_of_a_run_repeats_nothing(tmp_path: Path) -> None:
    first, second = (write_repeated(tmp_path / name, 0.5, [2.0, 1.0]) for name in ("first", "second"))
    for run, last in ((first, 2.5), (second, 2.5000001)):
        (run / "metrics.csv").write_text(f"epoch,train_loss,seconds\n1,2.0,1.25\n2,1.0,{last}\n")
    assert repetition(first, second).identical is True
    (second / "metrics.csv").write_text((first / "metrics.csv").read_text())
    found = repetition(first, second)
    assert found.identical is None
    assert "The second run is a copy" in found.sentences[0]


def test_a_failed_repetition_states_its_reason(tmp_path: Path) -> None:
    first = write_repeated(tmp_path / "first", 0.5, [2.0])
    second = write_repeated(tmp_path / "second", 0.5, [2.0])
    (second / "model.safetensors").unlink()
    assert "second failed: no memory." in repetition(first, second, {"second": "no memory"}).sentences[0]
    assert "a run has none yet." in repetition(first, second).sentences[0]


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0xx", b"\x02\0\0\0\0\0\0\0[]"])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    first = write_repeated(tmp_path / "first", 0.5, [2.0])
    second = write_repeated(tmp_path / "second", 0.5, [2.0])
    (second / "model.safetensors").write_bytes(content)
    found = repetition(first, second)
    assert found.identical is None
    assert found.sentences[0].startswith("The two runs cannot be compared: ")


def test_the_spread_is_an_interval_of_student() -> None:
    results = of("a", [950, 960, 970], [50, 50, 53])
    clean, aa, mean = spread(results, ["clean", "aa", "all"])
    assert (mean.title, mean.mean, mean.deviation) == ("All", aa.mean, aa.deviation)
    assert [one.title for one in spread(results, ["clean", "pgd_10", "aa", "all"])] == ["Clean", "AA"]
    assert (clean.mean, clean.deviation, clean.lowest, clean.highest) == pytest.approx((0.96, 0.01, 0.95, 0.97))
    assert clean.high - clean.mean == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert (aa.title, aa.seeds) == ("AA", 3)
    assert spread(of("a", [950]), ["clean"]) == ()


def test_the_order_counts_pairs() -> None:
    shares = {"a": (900, 0.8), "b": (910, 0.9), "c": (920, 0.7), "d": (920, 0.6)}
    results = {name: of(name, [hits]) for name, (hits, _) in shares.items()}
    results["masked"] = of("masked", [100], [99], suspected=True)
    rows = tuple(row(name, own, {"clean": shares.get(name, (0, 0.5))[1]}) for name, own in results.items())
    table = PaperTable("t", "T", "", "", ("clean", "aa"), rows)
    found = result_table(table, {result.run: result for own in results.values() for result in own})
    order = order_of(found, "clean")
    assert order is not None
    assert (order.same, order.pairs) == (5, 9), "c and d are equal here; all four are above masked on both sides"
    assert order_of(found, "aa") is None
    assert "Clean 5 of 9" in order_words(found)


def test_settings_are_those_of_the_runs() -> None:
    config = {"data": {"source": "mnist5k"}, "guide": None, "training": {"epochs": 6}, "method": {"inner": None}}
    runs = [EvaluatedRun(Path("a"), "a", config, ()), EvaluatedRun(Path("b"), "b", None, ())]
    found = settings_beside(runs, {"data": "CIFAR-10", "aa_images": "1,000"})
    assert [(one.title, one.paper, one.here) for one in found] == [
        ("Data", "CIFAR-10", "mnist5k"),
        ("Epochs", "", "6"),
        ("Test images of AutoAttack", "1,000", ""),
    ]
    assert json.dumps(settings_beside([], {})) == "[]"
