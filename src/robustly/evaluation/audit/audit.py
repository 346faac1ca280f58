"""Re-check an evaluation from scratch: every number from the rows, every row from the images and the weights."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustly.evaluation.audit.check import Check
from robustly.evaluation.audit.rerun import again
from robustly.evaluation.diagnostics import Finding, cheap_findings, masking_suspected
from robustly.evaluation.evidence import CURVE, IMAGES, SUMMARY, TABLE, Evidence, EvidenceError, read_evidence
from robustly.evaluation.metrics import contradictions, metrics
from robustly.evaluation.provenance import describe
from robustly.evaluation.suites.suite import Plan, Suite, settings
from robustly.evaluation.target import EvaluationTarget, places, round_to_8_bits
from robustly.files import file_sha256
from robustly.models import weights_hash
from robustly.threats import parse_threat
from robustly.threats.lp import ThreatModel

_TIE = 1e-4  # logit difference below which another machine's rounding may decide


@dataclass(frozen=True)
class Audit:
    """All checks of an evaluation, in order."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def audit(folder: Path, target: EvaluationTarget, suite: Suite | None, *, rerun: int = 32) -> Audit:
    """Recompute everything that an evaluation claims.

    The files are what the summary hashed; the data and the weights are those that it names; every image that is
    said to be broken lies in the ball and the box and is misclassified; every row agrees with the images; every
    printed number follows from the rows; certificates come out again; and a sample of the examples that
    stood, another one each time, is attacked again.

    Args:
        folder: the evaluation's folder.
        subject: the model and the data, loaded independently of the evidence. Threat, seed and batch size are
            taken from the evidence.
        suite: the suite that was run, from a source of one's own, to run attacks and certificates again. None (it
            is not known) fails the audit: what stood, and what was proved, would rest on the word of the evidence.
        rerun: how many of the standing examples to attack again with each attack.
    """
    try:
        evidence = read_evidence(folder)
        checks = tuple(_checks(folder, evidence, target, suite, rerun))
    except EvidenceError as error:
        checks = (Check("the evidence is complete and readable", str(error)),)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        checks = (Check("the evidence has the form it should", f"{type(error).__name__}: {error}"),)
    return Audit(checks)


def _checks(
    folder: Path, evidence: Evidence, target: EvaluationTarget, suite: Suite | None, rerun: int
) -> Iterator[Check]:
    table, summary = evidence.table, evidence.summary
    threat = parse_threat(summary["threat"]["text"], summary["threat"]["box"])
    if not isinstance(threat, ThreatModel):
        raise EvidenceError(f"an audit checks Lp threats, the evidence is under {threat}")
    target = replace(
        target, threat=threat, seed=int(summary["suite"]["seed"]), batch_size=int(summary["suite"]["batch_size"])
    )
    attacks = [entry["name"] for entry in summary["suite"]["attacks"]]
    yield _files(folder, summary)
    weights = weights_hash(target.model)
    named = summary["model"]["weights_sha256"]
    same = "" if weights == named else f"they hash to {weights}: the evaluation is of another checkpoint"
    yield Check(f"the weights are those named ({named[:12]}...)", same)
    if same:
        return
    digest = target.data.digest()
    yield Check(
        "the images are those named", "" if digest == summary["data"]["sha256"] else f"they hash to {digest}"
    )
    same_rows = torch.equal(table["id"], target.data.ids.cpu()) and torch.equal(
        table["label"], target.data.labels.cpu()
    )
    yield Check("one row per image, with its label", "" if same_rows else "ids or labels differ from the data")
    if not same_rows:
        return
    yield _clean(table, target)
    findings = cheap_findings(target)
    yield _same_findings(summary, findings)
    for name, unbroken, expected in _expected(summary, table, bool(masking_suspected(findings))):
        if name in summary["failures"]:
            yield Check(f"{name} ran", f"it failed: {summary['failures'][name]}")
        else:
            yield from _attack(name, evidence, target, unbroken, expected)
    yield _worst_case(table, attacks)
    if summary["security_curve"] is not None:
        yield _curve(evidence, target, summary["security_curve"]["epsilon"][1:])
    yield _numbers(evidence, attacks)
    certificates = _certificate_subjects(summary)
    count = int(contradictions(table, attacks, certificates).sum())
    if certificates:
        yield Check("no example both certified and broken", f"{count} are" if count else "")
    yield _same_suite(summary, suite)
    yield _gallery(evidence, target)
    if suite is not None:
        yield _description(summary, describe(target, suite, summary["suite"]["mode"]))
        yield from again(evidence, target, suite, rerun)


def _expected(
    summary: Mapping[str, Any], table: Mapping[str, Tensor], is_suspicious: bool
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each attack's name, the examples that stood before it, and those of them that it had to attack."""
    correct = table["clean_prediction"] == table["label"]
    unbroken, closeness = correct, -table["clean_margin"]
    survivors_only = summary["suite"]["mode"] == "worst_case"
    for entry in summary["suite"]["attacks"]:
        name, plan = entry["name"], Plan(**entry["plan"])
        expected = torch.zeros_like(unbroken)
        if not plan.on_suspicion or is_suspicious:
            rows = plan.rows(unbroken, closeness, table["id"], int(summary["suite"]["seed"]))
            expected[rows if survivors_only else correct] = True
        yield name, unbroken if survivors_only else correct, expected
        broken = table[f"{name}.broken"]
        is_suspicious |= plan.sentinel and bool((expected & broken).any())
        closeness = torch.fmax(closeness, table[f"{name}.margin"])
        unbroken = unbroken & ~broken


def _same_findings(summary: Mapping[str, Any], findings: list[Finding]) -> Check:
    """Whether the cheap diagnostics come out as stated."""
    stated = {entry["id"]: entry["passed"] for entry in summary["findings"]}
    wrong = [finding.id for finding in findings if stated.get(finding.id) != finding.passed]
    return Check("the diagnostics come out again", f"not so: {', '.join(wrong)}" if wrong else "")


def _description(summary: Mapping[str, Any], known: Mapping[str, Any]) -> Check:
    """Threat, classes, titles and counts as the report prints them, derived anew."""
    pairs = {
        "threat": (summary["threat"], known["threat"]),
        "suite": (summary["suite"], known["suite"]),
        "data.classes": (summary["data"]["classes"], known["data"]["classes"]),
        "data.count": (summary["data"]["count"], known["data"]["count"]),
        "model.parameters": (summary["model"]["parameters"], known["model"]["parameters"]),
    }
    wrong = [name for name, (stated, derived) in pairs.items() if stated != derived]
    return Check("what is said of threat, suite and data", f"not so: {', '.join(wrong)}" if wrong else "")


def _gallery(evidence: Evidence, target: EvaluationTarget) -> Check:
    rows, images = _placed(evidence, target, "gallery")
    same = torch.equal(images, target.data.floats(rows)) if len(rows) else True
    return Check("the originals shown are those of the data", "" if same else "they differ")


def _certificate_subjects(summary: Mapping[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["certifies"] for entry in summary["suite"]["certificates"]}


def _same_suite(summary: Mapping[str, Any], suite: Suite | None) -> Check:
    """Whether the suite at hand is the one that was run, part by part and setting by setting."""
    name = f"the suite {summary['suite']['name']!r} is the one known by that name"
    if suite is None:
        return Check(name, "it is not known here, so nothing that stood could be attacked or certified again")
    recorded = {
        kind: {entry["name"]: entry["settings"] for entry in summary["suite"][kind]}
        for kind in ("attacks", "certificates")
    }
    known = {
        "attacks": {key: settings(part) for key, part in suite.attacks.items()},
        "certificates": {key: settings(part) for key, part in suite.certificates.items()},
    }
    wrong = [kind for kind, parts in known.items() if parts != recorded[kind]]
    return Check(name, f"its {' and '.join(wrong)} differ from what the summary names" if wrong else "")


def _files(folder: Path, summary: Mapping[str, Any]) -> Check:
    wrong = [name for name in (TABLE, IMAGES) if file_sha256(folder / name) != summary["files"].get(name)]
    return Check(f"the files are those that {SUMMARY} names", f"changed: {', '.join(wrong)}" if wrong else "")


def _clean(table: Mapping[str, Tensor], target: EvaluationTarget) -> Check:
    rows = torch.arange(len(target.data), device=target.data.images.device)
    logits = target.logits(target.data.floats, rows).cpu()
    said = table["clean_prediction"]
    wrong = _disagree(logits, said)
    return Check(
        "clean predictions", f"{int(wrong.sum())} differ, first id {_first(table, wrong)}" if wrong.any() else ""
    )


def _disagree(logits: Tensor, said: Tensor) -> Tensor:
    """Where a prediction is not the stated one, ties by rounding aside."""
    stated = logits.gather(1, said.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    behind = logits.amax(1) - stated
    return (behind > _TIE * logits.abs().amax(1).clamp_min(1.0)) | (said < 0) | (said >= logits.shape[1])


def _tied(logits: Tensor) -> Tensor:
    """Where the two largest logits are so close that rounding may decide."""
    gap = logits.topk(2, dim=1).values.diff(dim=1).abs()[:, 0]
    return gap <= _TIE * logits.abs().amax(1).clamp_min(1.0)


def _first(table: Mapping[str, Tensor], wrong: Tensor) -> int:
    return int(table["id"][wrong.nonzero()[0, 0]])


def _attack(
    name: str, evidence: Evidence, target: EvaluationTarget, unbroken: Tensor, expected: Tensor
) -> Iterator[Check]:
    table, data = evidence.table, target.data
    tried, invalid, broken = table[f"{name}.tried"], table[f"{name}.invalid"], table[f"{name}.broken"]
    shown = torch.isin(table["id"], evidence.images[f"{name}.ids"])
    found = tried & ~invalid & table[f"{name}.distance"].isfinite()
    problem = ""
    if not torch.equal(shown, found) or int(shown.sum()) != len(evidence.images[f"{name}.ids"]):
        differing = shown != found
        where = f", first id {_first(table, differing)}" if differing.any() else ""
        problem = f"{int(differing.sum())} rows say otherwise than the images{where}"
    if bool((tried & ~invalid & broken & ~shown).any()):
        problem = "rows are said to be broken without an image"
    if bool((unbroken & ~tried & broken).any()):
        problem = "rows are said to be broken that were not attacked"
    if not torch.equal(tried, expected):
        problem = "not every example that still stood and was to be attacked was, or others were"
    if bool((~unbroken & ~broken).any()) or bool((invalid & ~broken).any()) or bool((invalid & ~tried).any()):
        problem = "misclassified or unanswered images must count as broken"
    yield Check(f"{name}: rows and images agree", problem)
    if problem:
        return
    rows, x_adv = _placed(evidence, target, name)
    x = data.floats(rows)
    here = rows.cpu()
    inside = target.threat.contains(x_adv, x).cpu()
    in_box = ((x_adv >= target.threat.box[0]) & (x_adv <= target.threat.box[1])).flatten(1).all(1).cpu()
    stray = (broken[here] & ~inside) | ~in_box
    hidden = inside & ~broken[here]
    problem = f"{int(stray.sum())} images outside ball or box" if stray.any() else ""
    problem += f"{int(hidden.sum())} images inside it are not counted" if hidden.any() else ""
    yield Check(f"{name}: images inside the threat set", problem)
    place = places(rows, len(data))
    logits = target.logits(lambda chunk: x_adv[place[chunk]], rows).cpu()
    label = table["label"][here]
    fooled = _disagree(logits, table[f"{name}.prediction"][here]) | (table[f"{name}.prediction"][here] == label)
    yield Check(
        f"{name}: images misclassified as stated",
        f"{int(fooled.sum())} are not, first id {int(table['id'][here[fooled][0]])}" if fooled.any() else "",
    )
    stated, measured = table[f"{name}.distance"][here], target.threat.distance(x_adv, x).cpu()
    off = ~torch.isclose(stated, measured.to(stated.dtype), rtol=1e-4, atol=1e-5)
    yield Check(f"{name}: distances", f"{int(off.sum())} differ" if off.any() else "")
    rounded = target.logits(lambda chunk: round_to_8_bits(x_adv[place[chunk]], data.floats(chunk)), rows).cpu()
    truth = (rounded.argmax(1) != label) & broken[here]
    differ = (table[f"{name}.broken_8bit"][here] != truth) & ~_tied(rounded)
    unfounded = table[f"{name}.broken_8bit"] & ~broken
    count = int(differ.sum()) + int(unfounded.sum())
    yield Check(f"{name}: verdicts after rounding to 8 bits", f"{count} differ" if count else "")


def _placed(evidence: Evidence, target: EvaluationTarget, name: str) -> tuple[Tensor, Tensor]:
    """Rows of the data, ascending, and the stored images for them."""
    device = target.data.images.device
    position = {int(identity): row for row, identity in enumerate(evidence.table["id"].tolist())}
    rows = torch.tensor([position[int(i)] for i in evidence.images[f"{name}.ids"]], dtype=torch.int64)
    order = rows.argsort()
    return rows[order].to(device), evidence.images[f"{name}.images"][order].to(device)


def _worst_case(table: Mapping[str, Tensor], attacks: list[str]) -> Check:
    wrong = table["clean_prediction"] != table["label"]
    for column in ("broken", "broken_8bit"):
        expected = wrong.clone()
        for name in attacks:
            expected |= table[f"{name}.{column}"]
        if not torch.equal(expected, table[f"worst_case.{column}"]):
            return Check("worst case over the attacks", f"worst_case.{column} is not the union of the attacks")
    return Check("worst case over the attacks")


def _curve(evidence: Evidence, target: EvaluationTarget, radii: list[float]) -> Check:
    name = "security curve"
    table = evidence.table
    distance = table[f"{CURVE}.distance"]
    correct = table["clean_prediction"] == table["label"]
    tried = ~distance.isnan()
    count = int(tried.sum())
    if count == 0 or bool(tried[count:].any()):
        return Check(name, "it is not drawn from the first examples")
    attack = f"{evidence.summary['suite']['curve']}.distance"
    grid = torch.tensor([*radii, torch.inf], dtype=torch.float64)
    known = table[attack].double().nan_to_num(torch.inf)
    reached = grid[torch.bucketize(known * (1 - 1e-5) - 1e-6, grid).clamp_max(len(radii))]
    same_radius = (grid - evidence.summary["threat"]["epsilon"]).abs().min() < 1e-9
    if same_radius and bool((distance[tried].double() > reached[tried] + 1e-6).any()):
        return Check(name, "examples stand at a radius at which the table has them broken")
    if bool((tried & ~correct & (distance != 0)).any()) or bool((tried & correct & (distance == 0)).any()):
        return Check(name, "misclassified images must stand at distance 0, and no others")
    shown = torch.isin(table["id"], evidence.images[f"{CURVE}.ids"])
    if not torch.equal(shown, tried & correct & distance.isfinite()):
        return Check(name, "rows say otherwise than the images")
    rows, x_adv = _placed(evidence, target, CURVE)
    here = rows.cpu()
    on_grid = torch.isin(distance[here], torch.tensor(radii, dtype=distance.dtype))
    threat = target.threat.with_epsilon(distance[here].to(x_adv.device))
    inside = threat.contains(x_adv, target.data.floats(rows)).cpu()
    place = places(rows, len(target.data))
    logits = target.logits(lambda chunk: x_adv[place[chunk]], rows).cpu()
    label = table["label"][here]
    # an exact tie, which another machine may round the other way, counts as fooled
    fooled = (logits.argmax(1) != label) | _tied(logits)
    bad = ~(on_grid & inside & fooled)
    return Check(name, f"{int(bad.sum())} images do not break the model at the radius stated" if bad.any() else "")


def _numbers(evidence: Evidence, attacks: list[str]) -> Check:
    summary = evidence.summary
    curve = summary["security_curve"]
    expected = metrics(
        evidence.table,
        attacks=attacks,
        certificates=_certificate_subjects(summary),
        classes=summary["data"]["classes"],
        epsilon=float(summary["threat"]["epsilon"]),
        curve=curve["epsilon"][1:] if curve is not None else [],
    )
    wrong = sorted(_differences(expected, summary, ""))
    return Check("the printed numbers follow from the rows", f"not so: {', '.join(wrong[:5])}" if wrong else "")


def _differences(expected: Any, stated: Any, where: str) -> Iterator[str]:
    """Paths at which the summary says otherwise; entries that only the summary has are not numbers of the table."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            path = f"{where}.{key}" if where else str(key)
            if not isinstance(stated, dict) or key not in stated:
                yield path
            else:
                yield from _differences(value, stated[key], path)
    elif isinstance(expected, list):
        if not isinstance(stated, list) or len(stated) != len(expected):
            yield where
        else:
            for index, (one, other) in enumerate(zip(expected, stated, strict=True)):
                yield from _differences(one, other, f"{where}[{index}]")
    elif isinstance(expected, float) and isinstance(stated, int | float):
        if not math.isclose(expected, stated, rel_tol=1e-9, abs_tol=1e-12):
            yield where
    elif expected != stated:
        yield where
