"""Lint of the sentences: docstrings, comments and messages in src, and the documentation, in plain words.

A docstring begins with an imperative or a noun phrase. The words in `PERSONAL` are not used of code, which does not
hear, ask or believe anything. `python checks/plain_words.py [PATH ...]` prints one line per problem and exits with
1 if there is any.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
CLAUSES = ("what", "which", "whether", "who", "whose", "where", "why", "when", "how", "that")
VERBS = (
    "add", "answer", "apply", "ask", "average", "begin", "build", "call", "change", "check", "choose", "climb",
    "compare", "compute", "count", "craft", "create", "cut", "descend", "divide", "do", "draw", "end", "find",
    "fit", "fill", "follow", "freeze", "give", "go", "hear", "hold", "keep", "lay", "leave", "list", "load",
    "look", "make", "measure", "minimise", "maximise", "mix", "move", "multiply", "need", "open", "plan",
    "prepare", "print", "project", "pull", "push", "put", "raise", "read", "refuse", "remember", "remove",
    "replace", "restore", "return", "run", "save", "say", "scale", "see", "select", "set", "show", "split",
    "start", "step", "stop", "store", "swap", "take", "tell", "train", "try", "turn", "update", "use", "wait",
    "want", "weigh", "work", "wrap", "write",
)  # fmt: skip
NOUNS = (
    "answer", "average", "call", "change", "count", "cut", "draw", "end", "measure", "mix", "move", "need", "print",
    "project", "run", "scale", "set", "show", "split", "start", "step", "store", "train", "turn", "update", "use",
    "work",
)  # fmt: skip
OBJECTS = (
    "the", "a", "an", "one", "each", "every", "all", "some", "any", "no", "its", "it", "them", "this", "these",
    "those", "nothing", "what",
)  # fmt: skip
NEVER_VERBS = ("across", "always", "as", "besides", "is", "its", "minus", "plus", "this", "towards")
PERSONAL = (
    *("hear", "ask", "tell", "believe", "mind", "look"),  # nowhere
    *("want", "know", "think", "remember", "wish", "notice", "care"),  # of readers, not of code
)
FORMS = {
    "hear": "hears|heard|hearing", "ask": "asks|asked|asking", "tell": "tells|told|telling",
    "believe": "believes|believed", "mind": "minds|minded", "look": "looks|looked|looking",
    "want": "wants|wanted|wanting", "know": "knows|knew", "think": "thinks|thought",
    "remember": "remembers|remembered", "wish": "wishes|wished", "notice": "notices|noticed", "care": "cares|cared",
}  # fmt: skip
LITERARY = ("says", "said", "sees", "nobody", "everybody", "anybody", "somebody", "honest", "honestly", "goes on")
VALUES = ("as the suite says",)  # strings of the evidence's format
OF_READERS = 6  # from here on, words of PERSONAL that the documentation may use of its readers


def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(f"{word}|{FORMS[word]}" for word in words) + r")\b(?![(:])", re.IGNORECASE)


_NO = re.compile(
    r"(?<![Tt]here )\b(is|are|was|were|be) no\b"
    r"(?! (longer|more|fewer|less|larger|smaller|wider|higher|lower|worse)\b)"
)
_LITERARY = re.compile(r"\b(" + "|".join(LITERARY) + r")\b", re.IGNORECASE)
_CODE = re.compile(r"`[^`]*`|\"[^\"\n]*\"")


@dataclass(frozen=True)
class Problem:
    """One sentence to rewrite."""

    path: Path
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


def first_line_problem(line: str) -> str | None:
    """The problem of a docstring's first line, if it has one."""
    words = re.findall(r"[A-Za-z'-]+", line)
    if not words or not line[:1].isalpha():
        return None  # a formula
    first = words[0].lower()
    if first in CLAUSES and not line.rstrip().endswith("?"):
        return f"begins with the clause {words[0]!r}: begin with an imperative or a noun"
    followed = re.match(r"[\w'-]+ ([\w'-]+)", line)
    if followed and _is_third_person(first, followed[1].lower()):
        return f"begins with {words[0]!r}: use the imperative, or begin with a noun"
    return None


def _is_third_person(first: str, second: str) -> bool:
    """Return True for "draws the points", False for nouns as in "draws of a sample"."""
    if not first.endswith("s") or first.endswith(("ss", "us")) or first in NEVER_VERBS:
        return False
    stem = first[:-3] + "y" if first.endswith("ies") else first[:-1]
    is_verb = (stem in VERBS and stem not in NOUNS) or (first.endswith("es") and first[:-2] in VERBS)
    return is_verb or second in OBJECTS


def word_problems(text: str, words: tuple[str, ...] = PERSONAL) -> Iterator[str]:
    """The problems of any sentence. Code and quotations, in backquotes or quotation marks, do not count."""
    plain = _CODE.sub("", text)
    for found in _pattern(words).finditer(plain):
        yield f"personifies: {found[0]!r}"
    for found in _LITERARY.finditer(plain):
        yield f"literary: {found[0]!r}"
    for found in _NO.finditer(plain):
        yield f"{found[0]!r}: write 'not a'"


def check_source(path: Path) -> Iterator[Problem]:
    """Problems in the docstrings, comments and strings of a Python file."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    documented = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and ast.get_docstring(node)]
    for node in documented:
        lines = (ast.get_docstring(node) or "").splitlines()
        problem = first_line_problem(lines[0])
        if problem:
            yield Problem(path, node.body[0].lineno, problem)
        for offset, sentence in enumerate(lines):
            yield from _in_line(path, node.body[0].lineno + offset, sentence)
    docstrings = {id(node.body[0].value) for node in documented if isinstance(node.body[0], ast.Expr)}
    for node in ast.walk(tree):
        is_sentence = isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        if is_sentence and node.value not in VALUES and id(node) not in docstrings:
            yield from _in_line(path, node.lineno, node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# type:", "# noqa", "# fmt:")):
            yield from _in_line(path, token.start[0], token.string)


def _in_line(path: Path, line: int, sentence: str) -> Iterator[Problem]:
    for problem in word_problems(sentence):
        yield Problem(path, line, problem)


def check_text(path: Path) -> Iterator[Problem]:
    """Problems in a Markdown file, code blocks aside."""
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            for found in word_problems(line, PERSONAL[:OF_READERS]):
                yield Problem(path, number, found)


def check_all(root: Path = ROOT) -> list[Problem]:
    """All problems below a folder."""
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    return check_paths([root / "src", *pages])


def check_paths(paths: Sequence[Path]) -> list[Problem]:
    """Problems in Python files, folders of them, and Markdown files."""
    found: list[Problem] = []
    for path in paths:
        if path.suffix == ".md":
            found += check_text(path)
        else:
            found += [one for file in (sorted(path.rglob("*.py")) or [path]) for one in check_source(file)]
    return found


def main() -> int:
    """Print the problems in the paths of the command line, or all; returns the exit code."""
    found = check_paths([Path(word) for word in sys.argv[1:]]) if sys.argv[1:] else check_all()
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
