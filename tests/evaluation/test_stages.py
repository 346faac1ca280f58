"""Suites in stages: attacked examples, failing attacks, and continuation of a killed evaluation."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustly.attacks import APGD, ATTACKS, PGD, AttackResult
from robustly.attacks.core.contract import ANY_BALL, Needs
from robustly.data import Splits
from robustly.evaluation import (
    EvaluationCheckpoint,
    EvaluationError,
    EvaluationTarget,
    Plan,
    Suite,
    audit,
    evaluate,
)
from robustly.evaluation.batch_size import measure
from robustly.evaluation.checkpoint import AttackEvidence
from robustly.evaluation.suites.suite import in_full_precision, planned_rows
from robustly.evidence import EightBitImages, StoredImages, write_evidence
from robustly.evidence.schema import AttackColumns
from robustly.objectives import margin
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

THREAT = ThreatModel("linf", 0.06)
WEAK, STRONG = PGD(1, relative_step_size=0.5, start="none"), PGD(20, margin)


@dataclass(frozen=True)
class Failing:
    """Raise an error after `calls` batches of images."""

    message: str = "out of luck"
    needs: ClassVar[Needs] = ANY_BALL
    minimum_norm: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> AttackResult:
        raise RuntimeError(self.message)


def staged(**plans: Plan) -> Suite:
    attacks = {"weak": WEAK, "strong": STRONG, "more": APGD(10)}
    return Suite("staged", attacks, plans=plans, worst_case=True)


@given(seed=st.integers(0, 1000), share=st.floats(0.05, 1), at_least=st.integers(0, 30), count=st.integers(1, 40))
def test_a_plan_takes_the_closest_whatever_their_order(seed: int, share: float, at_least: int, count: int) -> None:
    draws = KeyedGenerator(seed, torch.arange(count))
    closeness, unbroken = draws.normal(1)[:, 0], draws.fold("standing").uniform(1)[:, 0] < 0.7
    ids = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    plan = Plan(closest=share, at_least=at_least)
    rows = planned_rows(plan, unbroken, closeness, ids, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1))
    again = planned_rows(plan, unbroken[order], closeness[order], ids[order], seed)
    assert sorted(ids[rows].tolist()) == sorted(ids[order][again].tolist())
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[rows] = True
    assert not (chosen & ~unbroken).any()
    if chosen.any() and (unbroken & ~chosen).any():
        assert closeness[chosen].min() >= closeness[unbroken & ~chosen].max()
    assert len(rows) >= min(at_least, int(unbroken.sum()))


def test_a_sample_is_drawn_by_id() -> None:
    unbroken, ids = torch.ones(50, dtype=torch.bool), torch.arange(50)
    plan = Plan(sample=10)
    rows = planned_rows(plan, unbroken, torch.zeros(50), ids, 0)
    assert len(rows) == len(set(rows.tolist())) == 10
    assert torch.equal(
        planned_rows(plan, unbroken, torch.zeros(50), ids.flip(0), 0).sort().values, (49 - rows).sort().values
    )
    assert not torch.equal(rows, planned_rows(plan, unbroken, torch.zeros(50), ids, 1))


def test_plans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="closest is a share"):
        Plan(closest=0)
    with pytest.raises(ValueError, match="sample at least 1"):
        Plan(sample=0)
    with pytest.raises(ValueError, match="needs worst_case=True"):
        Suite("s", {"weak": WEAK}, plans={"weak": Plan(closest=0.5)})
    with pytest.raises(ValueError, match="plans for absent"):
        Suite("s", {"weak": WEAK}, plans={"absent": Plan()}, worst_case=True)


@pytest.mark.slow
def test_stages_hand_on_survivors_and_spare_what_is_far(digit_net: nn.Module, digits: Splits) -> None:
    suite = staged(more=Plan(closest=0.25))
    found = evaluate(digit_net, digits.test, THREAT, suite, batch_size=64)
    weak, strong, more = (found.table.attacks[name] for name in ("weak", "strong", "more"))
    unbroken = ~strong.broken
    assert found.summary.suite.mode == "worst_case"
    assert np.array_equal(strong.tried, ~weak.broken)
    assert int(more.tried.sum()) == -(-int(unbroken.sum()) // 4)
    seen = np.fmax(np.fmax(-found.table.examples.clean_margin, weak.margin), strong.margin)
    spared = unbroken & ~more.tried
    assert seen[more.tried].min() >= seen[spared].max()


@pytest.mark.slow
def test_a_sentinel_that_finds_something_calls_the_others(
    digit_net: nn.Module, digits: Splits, tmp_path: Path
) -> None:
    suite = staged(strong=Plan(sample=50, sentinel=True), more=Plan(on_suspicion=True))
    found = evaluate(digit_net, digits.test, THREAT, suite, batch_size=64)
    strong = found.table.attacks["strong"]
    assert int(strong.tried.sum()) == 50
    fell = int((strong.tried & strong.broken).sum())
    assert fell > 0
    assert f"broke {fell} of 50" in found.summary.masking[0]
    assert found.table.attacks["more"].tried.any()
    write_evidence(found, tmp_path)
    result = audit(tmp_path, EvaluationTarget(digit_net, digits.test, THREAT), suite)
    assert result.passed, [check for check in result.checks if not check.passed]


@pytest.mark.slow
def test_one_success_of_a_sentinel_calls_the_others_and_is_no_alarm(
    digit_net: nn.Module, digits: Splits, tmp_path: Path
) -> None:
    suite = staged(strong=Plan(sample=1, sentinel=True), more=Plan(on_suspicion=True))
    data = digits.test.select(torch.arange(60))
    found = evaluate(digit_net, data, THREAT, suite, batch_size=60, seed=2)
    strong = found.table.attacks["strong"]
    assert (int(strong.tried.sum()), int((strong.tried & strong.broken).sum())) == (1, 1)
    assert found.table.attacks["more"].tried.any()
    assert found.summary.masking == ()
    sentinel = next(finding for finding in found.summary.findings if finding.id == "sentinel:strong")
    assert sentinel.passed
    assert (sentinel.value, "1 of 1" in sentinel.words) == (1.0, True)
    write_evidence(found, tmp_path)
    result = audit(tmp_path, EvaluationTarget(digit_net, data, THREAT, seed=2), suite)
    assert result.passed, [check for check in result.checks if not check.passed]


@pytest.mark.slow
def test_a_quiet_sentinel_leaves_the_others_asleep(digit_net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    attacks = {"strong": PGD(30, margin, restarts=3), "watch": PGD(0, start="none"), "more": APGD(10)}
    plans = {"watch": Plan(sample=20, sentinel=True), "more": Plan(on_suspicion=True)}
    suite = Suite("quiet", attacks, plans=plans, worst_case=True)
    found = evaluate(digit_net, digits.test, THREAT, suite, batch_size=64)
    assert not found.table.attacks["more"].tried.any()
    assert found.summary.masking == ()
    assert [one.state for one in found.summary.outcomes] == ["", "", "not needed"]
    sentinel = next(finding for finding in found.summary.findings if finding.id == "sentinel:watch")
    assert sentinel.passed
    assert "0 of 20" in sentinel.words
    write_evidence(found, tmp_path)
    result = audit(tmp_path, EvaluationTarget(digit_net, digits.test, THREAT), suite)
    assert result.passed, [check for check in result.checks if not check.passed]


@pytest.mark.slow
def test_an_attack_that_raises_costs_only_itself(digit_net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    whole = evaluate(digit_net, digits.test, THREAT, Suite("s", {"weak": WEAK, "strong": STRONG}), batch_size=64)
    suite = Suite("s", {"weak": WEAK, "bad": Failing(), "strong": STRONG})
    with pytest.warns(UserWarning, match="The attack 'bad' failed"):
        found = evaluate(digit_net, digits.test, THREAT, suite, batch_size=64)
    assert found.summary.failures == {"bad": "RuntimeError: out of luck"}
    assert [one.state for one in found.summary.outcomes] == ["", "failed", ""]
    assert np.array_equal(found.table.worst_case.broken, whole.table.worst_case.broken)
    assert not found.table.attacks["bad"].tried.any()
    write_evidence(found, tmp_path)
    result = audit(tmp_path, EvaluationTarget(digit_net, digits.test, THREAT), suite)
    assert not result.passed
    assert any("out of luck" in check.problem for check in result.checks)


@pytest.mark.slow
def test_when_every_attack_fails_there_is_no_number(digit_net: nn.Module, digits: Splits) -> None:
    with pytest.raises(EvaluationError, match=r"every attack failed.* RuntimeError: out of luck"):
        evaluate(digit_net, digits.test, THREAT, Suite("s", {"bad": Failing()}), batch_size=64)


def test_a_norm_that_an_attack_does_not_know_is_met_at_the_door(digit_net: nn.Module, digits: Splits) -> None:
    with pytest.raises(EvaluationError, match=r"'apgd' of suite 's' .*any threat but l0"):
        evaluate(digit_net, digits.test, ThreatModel("l0", 5), Suite("s", {"apgd": APGD(2)}), batch_size=64)


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_with_the_same_result(
    digit_net: nn.Module, digits: Splits, tmp_path: Path
) -> None:
    suite = staged(more=Plan(closest=0.5))
    expected = evaluate(digit_net, digits.test, THREAT, suite, batch_size=64)
    checkpoint = EvaluationCheckpoint(tmp_path / "partial", "this one")

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "strong" and done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(digit_net, digits.test, THREAT, suite, batch_size=64, checkpoint=checkpoint, progress=interrupt)
    assert {path.name for path in (tmp_path / "partial").iterdir()} == {"begun.json", "weak.safetensors"}
    asked: list[str] = []
    found = evaluate(
        digit_net, digits.test, THREAT, suite, batch_size=64, checkpoint=checkpoint,
        progress=lambda what, done, total: asked.append(what),
    )  # fmt: skip
    assert set(asked) == {"strong", "more"}
    for mine, theirs in (
        (found.table.columns(), expected.table.columns()),
        (found.images.tensors(), expected.images.tensors()),
    ):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_array_equal(mine[name], values, err_msg=name)
    if os.name != "nt":  # memory holds the images of one attack at a time
        assert not any(kept.images.flags.owndata for kept in found.images.attacks.values() if len(kept))
    other = EvaluationCheckpoint(tmp_path / "partial", "another one")
    assert other.load("weak") is None
    (tmp_path / "partial" / "weak.safetensors").write_bytes(b"damaged")
    assert checkpoint.load("weak") is None
    checkpoint.remove()
    assert not (tmp_path / "partial").exists()


@pytest.mark.slow
def test_the_batch_size_is_measured(digit_net: nn.Module, digits: Splits) -> None:
    tuning = measure(EvaluationTarget(digit_net, digits.test, THREAT), (16, 100))
    assert tuning.batch_size in (16, 100)
    assert tuning.seconds > 0
    assert tuning.half_seconds is not None
    found = evaluate(digit_net, digits.test, THREAT, Suite("s", {"weak": WEAK}))
    given = evaluate(digit_net, digits.test, THREAT, Suite("s", {"weak": WEAK}), batch_size=50)
    assert np.array_equal(found.table.attacks["weak"].broken, given.table.attacks["weak"].broken)


def test_where_bfloat16_does_not_pay_it_is_not_used() -> None:
    suite = Suite("s", {"fast": PGD(precision="bfloat16"), "plain": ATTACKS["pgd_10"]})
    slow = in_full_precision(suite)
    assert slow.attacks == {"fast": PGD(), "plain": ATTACKS["pgd_10"]}


def test_parameters_of_a_change_survive_an_interruption(tmp_path: Path) -> None:
    """Room for threats whose search does not move the image itself."""
    images = StoredImages(np.arange(3), np.zeros((3, 1, 2, 2), np.float32), np.ones((3, 5), np.float32))
    levels = np.full((2, 1, 2, 2), 7, np.uint8)
    saved = EightBitImages(np.arange(2), levels, np.ones((2, 5), np.float32))
    checkpoint = EvaluationCheckpoint(tmp_path, "this one")
    checkpoint.save("turned", AttackEvidence(AttackColumns.untried(4), images, 2, 1.5, saved))
    back = checkpoint.load("turned")
    assert back is not None
    assert (back.unconfirmed, back.seconds) == (2, 1.5)
    assert back.images.theta is not None
    np.testing.assert_array_equal(back.images.theta, images.theta)
    np.testing.assert_array_equal(back.eight_bit.levels, levels)
    assert back.eight_bit.theta is not None
    np.testing.assert_array_equal(back.columns.margin, AttackColumns.untried(4).margin)
