"""Certificates in an evaluation: verdicts, counterexamples, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from half_space import (
    SUITE,
    THREAT,
    HalfSpaceDecision,
    HalfSpaceProof,
    StraightAcross,
    distance,
    half_space,
    images,
)
from robustly.certification import CertificateResult, Verdict
from robustly.evaluation import EvaluationError, Suite, evaluate
from robustly.evaluation.checkpoint import EvaluationCheckpoint
from robustly.evaluation.recording import certificate_columns
from robustly.evidence import Evidence, read_evidence, write_evidence
from robustly.evidence.schema import CertificateColumns, column_fields
from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat
from staged_certificate import SPENT, StagedCertificate


def evaluated(decision: HalfSpaceDecision) -> Evidence:
    suite = Suite("both", {"across": StraightAcross()}, certificates={"decision": decision}, curve="across")
    return evaluate(half_space(), images(), THREAT, suite, batch_size=7)


def test_every_verdict_of_a_complete_verifier_is_recorded() -> None:
    evidence = evaluated(HalfSpaceDecision())
    columns, table = evidence.table.certificates["decision"], evidence.table
    far = distance(half_space(), images().floats())[0].numpy()
    expected = table.correct & (far > 0.2)
    np.testing.assert_array_equal(columns.verified, expected)
    np.testing.assert_array_equal(columns.falsified, ~expected)
    np.testing.assert_array_equal(columns.falsified, table.worst_case.broken)
    assert (columns.lower_bound[expected] > 0).all()
    certified = evidence.summary.metrics.certified
    assert certified is not None
    assert certified.robust.hits == int(expected.sum()) == evidence.summary.metrics.worst_case.robust.hits
    (numbers,) = evidence.summary.metrics.certificates
    verified = int(expected.sum())
    rest = {"unknown": 0, "timeout": 0, "error": 0}
    assert numbers.verdicts == {"verified": verified, "falsified": len(expected) - verified, **rest}
    assert (numbers.terms.certifies, numbers.terms.failure_probability) == ("model", 0.0)


def test_counterexamples_are_stored_and_break_the_model() -> None:
    evidence = evaluated(HalfSpaceDecision())
    stored, falsified = evidence.images.certificates["decision"], evidence.table.certificates["decision"].falsified
    np.testing.assert_array_equal(stored.ids, evidence.table.examples.id[falsified])
    rows = torch.from_numpy(stored.ids - 100)
    shown = torch.from_numpy(stored.images)
    assert (half_space()(shown).argmax(1) != images().labels[rows]).all()
    assert THREAT.contains(shown, images().floats(rows)).all()


def test_a_counterexample_that_does_not_hold_makes_the_verdict_unknown() -> None:
    honest = evaluated(HalfSpaceDecision())
    falsified = honest.table.certificates["decision"].falsified

    def not_moved(found: CertificateResult, x: Tensor) -> CertificateResult:
        return replace(found, counterexample=x)

    with pytest.warns(UserWarning, match=r"5 counterexamples .*'decision'"):
        evidence = evaluated(HalfSpaceDecision(spoil=not_moved))
    columns = evidence.table.certificates["decision"]
    correct = evidence.table.correct
    np.testing.assert_array_equal(columns.falsified, falsified & ~correct)
    assert (columns.verdict[falsified & correct] == Verdict.UNKNOWN).all()
    assert len(evidence.images.certificates["decision"]) == int((falsified & ~correct).sum())

    def too_far(found: CertificateResult, x: Tensor) -> CertificateResult:
        return replace(found, counterexample=found.counterexample + 0.3)

    with pytest.warns(UserWarning, match="counterexamples of the certificate"):
        evidence = evaluated(HalfSpaceDecision(spoil=too_far))
    assert not evidence.table.certificates["decision"].falsified.any()


def verified_everywhere(found: CertificateResult, x: Tensor) -> CertificateResult:
    return replace(found, verdict=torch.full_like(found.verdict, Verdict.VERIFIED))


def test_a_certificate_that_an_attack_refutes_is_refused() -> None:
    with pytest.raises(EvaluationError, match="the certificate is wrong"):
        evaluated(HalfSpaceDecision(spoil=verified_everywhere))


def test_two_certificates_that_contradict_each_other_are_refused() -> None:
    suite = Suite(
        "two", {}, certificates={"a": HalfSpaceDecision(), "b": HalfSpaceDecision(spoil=verified_everywhere)}
    )
    with pytest.raises(EvaluationError, match="the certificate is wrong"):
        evaluate(half_space(), images(), THREAT, suite, batch_size=7)


@pytest.mark.parametrize(
    "decision",
    [
        HalfSpaceDecision(spoil=lambda found, x: replace(found, counterexample=None)),
        HalfSpaceDecision(certifies="another classifier"),
    ],
)
def test_falsified_examples_need_a_counterexample_and_a_proof_about_the_model(decision: HalfSpaceDecision) -> None:
    with pytest.raises(EvaluationError, match=r"falsified.* counterexample"):
        evaluated(decision)


def test_verdicts_and_radii_do_not_depend_on_batch_size() -> None:
    suite = replace(SUITE, certificates={"proof": HalfSpaceProof(), "decision": HalfSpaceDecision()})
    one, other = (evaluate(half_space(), images(), THREAT, suite, batch_size=size) for size in (3, 20))
    for name in suite.certificates:
        mine, theirs = one.table.certificates[name], other.table.certificates[name]
        np.testing.assert_array_equal(mine.verdict, theirs.verdict)
        np.testing.assert_allclose(mine.radius, theirs.radius, rtol=1e-5)


def test_stages_work_and_reasons_are_recorded_and_survive_the_disk(tmp_path: Path) -> None:
    suite = Suite("staged", {"across": StraightAcross()}, certificates={"staged": StagedCertificate(30)})
    evidence = evaluate(half_space(), images(), THREAT, suite, batch_size=7)
    write_evidence(evidence, tmp_path)
    columns = read_evidence(tmp_path).table.certificates["staged"]
    expected = StagedCertificate(30)(
        half_space(), images().floats(), images().labels, threat=THREAT, generator=KeyedGenerator(0, images().ids)
    )
    assert tuple(columns.stage) == expected.stage
    assert tuple(columns.reason) == expected.reason
    np.testing.assert_array_equal(columns.work, expected.work)
    np.testing.assert_array_equal(columns.seconds, expected.seconds)
    np.testing.assert_array_equal(columns.reason == SPENT, columns.open)
    (numbers,) = read_evidence(tmp_path).summary.metrics.certificates
    assert list(numbers.stages) == ["attack", "ibp", "crown", "branch"]
    assert numbers.stages["attack"].falsified == numbers.stages["attack"].count == int(columns.falsified.sum())
    assert numbers.reasons == {SPENT: int(columns.open.sum())}
    interval = evidence.summary.metrics.interval
    assert interval is not None
    assert interval.attacked.hits - interval.certified.hits == interval.undecided > 0


def test_texts_of_a_certificate_are_one_for_each_example_and_printable() -> None:
    part = StagedCertificate(30)(
        half_space(), images().floats(), images().labels, threat=THREAT, generator=KeyedGenerator(0, images().ids)
    )
    with pytest.raises(ValueError, match="stage has 2 texts for 20 examples"):
        replace(part, stage=("a", "b"))
    columns = certificate_columns(replace(part, reason=("\x1b[2Jone\ntwo " + "x" * 999,) * 20))
    assert set(columns.reason[columns.open]) == {("?[2Jone two " + "x" * 999)[:200]}
    assert set(columns.reason[~columns.open]) == {""}, "a decided example has no reason for being open"


def rows_of(model: Any, x: Tensor) -> list[int]:
    """The rows of the data that a batch has."""
    data = images().floats()
    return [int((data == one).flatten(1).all(1).nonzero()[0, 0]) for one in x]


@dataclass
class Watched:
    """A certificate whose calls are recorded; some rows make it fail."""

    inner: StagedCertificate
    fails: Callable[[list[int]], Exception | None] = lambda rows: None
    calls: list[list[int]] = field(default_factory=list)
    certifies: str = "model"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **rest: Any) -> CertificateResult:
        rows = rows_of(model, x)
        self.calls.append(rows)
        error = self.fails(rows)
        if error is not None:
            raise error
        return self.inner(model, x, y, **rest)


def watched(certificate: Watched, folder: Path | None = None) -> Evidence:
    suite = Suite("staged", {"across": StraightAcross()}, certificates={"staged": certificate})
    stored = None if folder is None else EvaluationCheckpoint(folder, "this one")
    return evaluate(half_space(), images(), THREAT, suite, batch_size=6, checkpoint=stored)


def assert_same_certificates(one: Evidence, other: Evidence) -> None:
    for name in column_fields(CertificateColumns):
        mine, theirs = (getattr(each.table.certificates["staged"], name) for each in (one, other))
        np.testing.assert_array_equal(mine, theirs)
    mine, theirs = one.images.certificates["staged"], other.images.certificates["staged"]
    np.testing.assert_array_equal(mine.ids, theirs.ids)
    np.testing.assert_array_equal(mine.images, theirs.images)
    assert one.summary.metrics.interval == other.summary.metrics.interval


def test_a_killed_run_continues_after_the_finished_parts(tmp_path: Path) -> None:
    whole = watched(Watched(StagedCertificate(30)))
    first = Watched(StagedCertificate(30), lambda rows: KeyboardInterrupt() if 13 in rows else None)  # type: ignore
    with pytest.raises(KeyboardInterrupt):
        watched(first, tmp_path)
    assert [len(rows) for rows in first.calls] == [6, 6, 6]
    stored = sorted(tmp_path.glob("certificate.staged/*.safetensors"))
    assert len(stored) == 2
    second = Watched(StagedCertificate(30))
    assert_same_certificates(watched(second, tmp_path), whole)
    assert second.calls == [list(range(12, 18)), [18, 19]]
    stored[0].write_bytes(stored[0].read_bytes()[:-40])
    third = Watched(StagedCertificate(30))
    assert_same_certificates(watched(third, tmp_path), whole)
    assert third.calls == [list(range(6))], "a damaged part is computed again"
    suite = Suite(
        "staged", {"across": StraightAcross()}, certificates={"staged": (fourth := Watched(StagedCertificate()))}
    )
    other = EvaluationCheckpoint(tmp_path, "another one")
    with pytest.warns(UserWarning, match="parts of a stopped evaluation"):
        evaluate(half_space(), images(), THREAT, suite, batch_size=6, checkpoint=other)
    assert len(fourth.calls) == 4, "parts of another evaluation do not count"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_halves_the_batch_and_marks_single_examples(error: Exception) -> None:
    scarce = Watched(StagedCertificate(30), lambda rows: error if len(rows) > 2 or 8 in rows else None)
    evidence, whole = watched(scarce), watched(Watched(StagedCertificate(30)))
    columns, expected = evidence.table.certificates["staged"], whole.table.certificates["staged"]
    failed = np.arange(20) == 8
    np.testing.assert_array_equal(columns.verdict == Verdict.ERROR, failed)
    np.testing.assert_array_equal(columns.verdict[~failed], expected.verdict[~failed])
    np.testing.assert_array_equal(columns.radius[~failed], expected.radius[~failed])
    assert columns.reason[8] == "out of memory"
    assert columns.radius[8] == 0
    assert evidence.summary.metrics.certificates[0].reasons["out of memory"] == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("the box is empty"), "the certificate 'staged' failed: the box is empty"),
        (KeyError("x"), "the certificate 'staged' failed: KeyError: 'x'"),
    ],
)
def test_any_other_error_is_one_sentence_with_the_name(error: Exception, words: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        watched(Watched(StagedCertificate(), lambda rows: error))
    assert str(raised.value) == words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"radius": torch.full((20,), -1.0)}, "negative, infinite or not a number"),
        ({"radius": torch.full((20,), torch.nan)}, "negative, infinite or not a number"),
        ({"verdict": torch.full((20,), 7, dtype=torch.int8)}, "not one of Verdict"),
    ],
)
def test_results_that_break_the_contract_are_refused(change: dict[str, Tensor], words: str) -> None:
    spoilt = HalfSpaceDecision(spoil=lambda found, x: replace(found, **{k: v[: len(x)] for k, v in change.items()}))
    suite = Suite("both", {}, certificates={"decision": spoilt})
    with pytest.raises(EvaluationError, match=f"'decision' failed.*{words}"):
        evaluate(half_space(), images(), THREAT, suite, batch_size=20)


@dataclass(frozen=True)
class OneLess:
    """A certificate that leaves out the last image of every batch."""

    certifies: str = "model"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **rest: Any) -> CertificateResult:
        return HalfSpaceProof()(model, x[:-1], y[:-1], **rest)


def test_a_result_for_fewer_images_is_refused() -> None:
    with pytest.raises(EvaluationError, match="'short' failed: it returns 6 values of verdict for 7 images"):
        evaluate(half_space(), images(), THREAT, Suite("s", {}, certificates={"short": OneLess()}), batch_size=7)


def test_an_unsupported_model_or_threat_is_refused_before_the_attacks() -> None:
    def attacked(*arguments: object) -> None:
        raise AssertionError("the attacks started")

    suite = Suite("staged", {"across": StraightAcross()}, certificates={"staged": StagedCertificate()})
    spiral = nn.Sequential(*half_space(), nn.Identity())
    with pytest.raises(
        EvaluationError, match=r"'staged' cannot be computed: the operation 'spiral' .* not supported"
    ):
        evaluate(spiral, images(), THREAT, suite, batch_size=20, progress=attacked)
    proof = Suite("turned", {}, certificates={"proof": HalfSpaceProof()})
    with pytest.raises(EvaluationError, match="'proof' is defined for Lp balls, the threat is 'rotation'"):
        evaluate(half_space(), images(), parse_threat("rotation:10"), proof, batch_size=20, progress=attacked)
