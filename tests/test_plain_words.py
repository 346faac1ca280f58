"""The lint of sentences finds what it is for, and leaves good sentences alone."""

from pathlib import Path
from types import ModuleType

import pytest

from loading import load_module

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lint() -> ModuleType:
    return load_module("checks/plain_words.py")


@pytest.mark.parametrize(
    "line",
    [
        "What the adversary may do.",
        "Whether each image is allowed.",
        "Where settings have a part.",
        "Returns the margin.",
        "Hears what happens; override what is of interest.",
        "Tries every class.",
        "Changes one random window at a time.",
        "Descends a smooth count.",
        "Marks the points that are kept.",
    ],
)
def test_headings_that_are_clauses_or_third_person_are_found(lint: ModuleType, line: str) -> None:
    assert lint.first_line_problem(line)


@pytest.mark.parametrize(
    "line",
    [
        "Return the margin.",
        "Gradient ascent with per-example early stopping (FAT, SAT, AdaAD).",
        "CE(z, y) + beta KL(p || p').",
        "|v^T H v| of the Hessian.",
        "Losses of the guide.",
        "Steps after which the step size is checked: 22, 41.",
        "Changes of the pixels.",
        "Weights of a batch.",
        "Attacks: one file per family.",
        "Pass the images on.",
        "As the paper, on logits.",
        "Bias.",
    ],
)
def test_imperatives_nouns_and_formulas_pass(lint: ModuleType, line: str) -> None:
    assert lint.first_line_problem(line) is None


@pytest.mark.parametrize(
    "text",
    [
        "its verdicts nobody believes",
        "the part asks for a guide",
        "epsilon is no whole number",
        "Tell every part",
        "the message says why",
        "the network that an attack sees",
        "work whose progress nobody follows",
    ],
)
def test_personifications_are_found_anywhere(lint: ModuleType, text: str) -> None:
    assert list(lint.word_problems(text))


@pytest.mark.parametrize(
    "text",
    [
        "it is no longer than that",
        "where there is no gradient",
        'the key "ask"',
        "`look` is a name",
        "not a number",
    ],
)
def test_other_uses_pass(lint: ModuleType, text: str) -> None:
    assert not list(lint.word_problems(text))


def test_docstrings_comments_and_messages_are_read(lint: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(
        '"""What this is."""\n\nx = 1  # nobody asks\nraise ValueError("the loss asks for more")\n\n\n'
        'def good(y):\n    """Double y."""\n    return f"{y} tells all"\n',
        encoding="utf-8",
    )
    assert {finding.line for finding in lint.check_source(path)} == {1, 3, 4, 9}
    page = tmp_path / "page.md"
    page.write_text("The tool asks.\n```\nask\n```\nYou know.\n", encoding="utf-8")
    assert [finding.line for finding in lint.check_text(page)] == [1]
    in_source = lint.check_paths([path])
    assert in_source
    assert lint.check_paths([tmp_path]) == in_source, "pages of a folder are named one by one"
    assert len(lint.check_paths([tmp_path, page])) == len(in_source) + 1
