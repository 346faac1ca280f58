"""The words of the report's pictures: written with the evidence, shown on the page, checked by the audit."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forging import problems
from torch import nn

from robustly.attacks import PGD, RandomDraws
from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget, Sampling, Suite, audit, evaluate
from robustly.evaluation.audit.fields import fields_check, missing_fields
from robustly.evaluation.derived import picture_words
from robustly.evidence import Evidence, write_evidence
from robustly.evidence.audit_record import STATED
from robustly.evidence.schema import SUMMARY
from robustly.evidence.storage import pictures_of, read_summary
from robustly.files import write_json
from robustly.reports.pages.gallery import gallery
from robustly.testing import small_network
from robustly.threats import Affine, parse_threat

SUITE = Suite("test", {"random_draws": RandomDraws(3), "pgd": PGD(2)})
THREAT = parse_threat("affine:rotation=60,shift=2")


@pytest.fixture(scope="module")
def target() -> EvaluationTarget:
    pixels = torch.randint(0, 256, (10, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    net: nn.Module = small_network((1, 6, 6)).eval()
    with torch.no_grad():
        net[-1].bias -= net(pixels / 255).mean(0)  # type: ignore[index]
        labels = net(pixels / 255).argmax(1)
    data = ImageData(pixels, labels, torch.arange(100, 110), ("a", "b", "c", "d"), "random")
    return EvaluationTarget(net, data, THREAT)


@pytest.fixture(scope="module")
def evidence(target: EvaluationTarget) -> Evidence:
    return evaluate(target.model, target.data, THREAT, SUITE, batch_size=10)


def test_every_picture_of_a_transformed_image_has_the_words_of_its_parameters(
    evidence: Evidence, target: EvaluationTarget
) -> None:
    words = evidence.summary.picture_words
    assert set(words) == {"random_draws", "pgd"}
    shown = set(map(str, evidence.images.gallery.ids.tolist()))
    assert isinstance(THREAT, Affine)
    for name, kept in evidence.images.attacks.items():
        assert set(words[name]) == shown & set(map(str, kept.ids.tolist()))
        assert kept.theta is not None
        allowed = THREAT.around(torch.zeros(1, 1, 6, 6))
        for identity, theta in zip(kept.ids.tolist(), kept.theta, strict=True):
            if str(identity) in words[name]:
                assert [words[name][str(identity)]] == allowed.describe(torch.from_numpy(theta[None]))
    grid = gallery(evidence.summary, evidence.table, pictures_of(evidence.images))
    assert grid is not None
    (shot, *_) = grid.shelves[0].shots
    assert shot.change == words[grid.shelves[0].attack][str(shot.example)]
    assert "degrees" in shot.change


@pytest.mark.slow
def test_honest_words_pass_the_audit_and_others_fail(
    evidence: Evidence, target: EvaluationTarget, tmp_path: Path
) -> None:
    write_evidence(evidence, tmp_path)
    assert read_summary(tmp_path).picture_words == evidence.summary.picture_words
    honest = audit(tmp_path, target, SUITE)
    assert honest.passed, problems(honest)
    summary = json.loads((tmp_path / SUMMARY).read_text())
    first = next(iter(summary["picture_words"]["pgd"]))
    summary["picture_words"]["pgd"][first] = "rotated by 1.0 degrees clockwise"
    write_json(tmp_path / SUMMARY, summary)
    assert audit(tmp_path, target, SUITE).failed == ("the words of the pictures follow from their parameters",)


def test_images_of_balls_have_no_words(target: EvaluationTarget) -> None:
    found = evaluate(
        target.model, target.data, parse_threat("linf:0.3"), Suite("one", {"pgd": PGD(2)}), batch_size=10
    )
    assert len(found.images.attacks["pgd"]) > 0
    assert found.summary.picture_words == {}
    assert picture_words(target, found.images.attacks, found.images.gallery) == {}


Change = Callable[[dict[str, Any]], None]


def one_picture_less(summary: dict[str, Any]) -> None:
    summary["picture_words"]["pgd"].popitem()


def one_attack_less(summary: dict[str, Any]) -> None:
    del summary["picture_words"]["pgd"]


REMOVALS: dict[str, Change] = {
    "field": lambda summary: summary.pop("picture_words"),
    "all": lambda summary: summary.update(picture_words={}),
    "empty attacks": lambda summary: summary.update(picture_words={"pgd": {}, "random_draws": {}}),
    "one attack": one_attack_less,
    "one picture": one_picture_less,
    "an empty text": lambda summary: summary["picture_words"]["pgd"].update(
        dict.fromkeys(summary["picture_words"]["pgd"], "")
    ),
    "another attack": lambda summary: summary["picture_words"].update(other=summary["picture_words"].pop("pgd")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REMOVALS)
def test_words_that_are_removed_fail_the_audit(
    evidence: Evidence, target: EvaluationTarget, tmp_path: Path, name: str
) -> None:
    write_evidence(evidence, tmp_path)
    summary = json.loads((tmp_path / SUMMARY).read_text())
    REMOVALS[name](summary)
    write_json(tmp_path / SUMMARY, summary)
    assert not audit(tmp_path, target, SUITE).passed


@pytest.mark.slow
def test_evidence_of_schema_5_may_lack_them_and_the_audit_says_so(
    evidence: Evidence, target: EvaluationTarget, tmp_path: Path
) -> None:
    write_evidence(evidence, tmp_path)
    summary = json.loads((tmp_path / SUMMARY).read_text()) | {"schema": 5}
    del summary["picture_words"]
    write_json(tmp_path / SUMMARY, summary)
    result = audit(tmp_path, target, SUITE)
    assert result.passed, problems(result)
    notes = {check.name: check.note for check in result.checks if check.note}
    assert notes["the summary states every field"] == "evidence of schema 5 does not state picture_words"
    assert notes["the words of the pictures follow from their parameters"] == "evidence of schema 5 has none"


@pytest.mark.slow
def test_every_field_that_is_removed_is_named(evidence: Evidence, tmp_path: Path) -> None:
    write_evidence(evidence, tmp_path)
    summary, whole = read_summary(tmp_path), json.loads((tmp_path / SUMMARY).read_text())
    assert fields_check(tmp_path, summary).passed
    paths = list(missing_fields(whole, None))
    assert paths == list(whole)
    tried = 0
    for path in keys_of(whole):
        part = copy.deepcopy(whole)
        place = part
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        write_json(tmp_path / SUMMARY, part)
        check = fields_check(tmp_path, summary)
        assert not check.passed, path
        assert str(path[-1]) in check.problem
        tried += 1
    assert tried > 100


def keys_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all keys of objects, also of those in lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        if isinstance(value, dict):
            yield (*path, key)
        yield from keys_of(inner, (*path, key))


@pytest.mark.slow
def test_another_seed_fails_where_searches_depend_on_it(
    evidence: Evidence, target: EvaluationTarget, tmp_path: Path
) -> None:
    write_evidence(evidence, tmp_path)
    summary = json.loads((tmp_path / SUMMARY).read_text())
    summary["suite"]["seed"] = 1
    write_json(tmp_path / SUMMARY, summary)
    result = audit(tmp_path, target, SUITE, sampling=Sampling(everything=True))
    assert not result.passed
    assert "seed, where no repeated search depends on it" in STATED
