"""What is imported at the first use: `import robustly` and the light commands need no PyTorch."""

import json
import pkgutil
import subprocess
import sys

import pytest

import robustly
from robustly.certification.certificates import BoundCertificate
from robustly.certification.problem import METHODS
from robustly.cli import main
from robustly.cli.commands import COMMANDS, analyse, audit, certify, diagnose, suites
from robustly.evaluation import SUITES, Sampling
from robustly.evaluation.suites.certified import CERTIFICATES
from robustly.experiments.configuration import SECTION_TYPES
from robustly.experiments.keys import NETWORKS, SECTIONS
from robustly.experiments.run_folder import CERTIFIED
from robustly.training.parts import CONVENTIONAL_NETWORKS

HEAVY = ("torch", "numpy", "pyarrow", "rich", "PIL", "jinja2", "lightning_fabric", "jaxtyping")
LIGHT = [["--version"], ["--help"], ["recipes"], ["recipes", "mnist5k/trades"], ["suites"], ["no-such-command"]]
LIGHT += [[name, "--help"] for name in COMMANDS if name != "evaluate"]


def test_light_commands_and_the_package_import_nothing_heavy() -> None:
    """All in one process, because each new process takes a while."""
    code = f"""
import json, sys
import robustly
assert "evaluate" in dir(robustly) and "attacks" in dir(robustly)
from robustly.cli import main
codes = []
for words in {LIGHT!r}:
    try:
        codes.append(main(words))
    except SystemExit as exit:
        codes.append(exit.code)
print(json.dumps([codes, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert codes == [0 if words != ["no-such-command"] else 2 for words in LIGHT]


def test_every_exported_name_is_found() -> None:
    for name in robustly.__all__:
        assert getattr(robustly, name) is not None
    assert sorted([*robustly._EXPORTS, "__version__"]) == sorted(robustly.__all__)
    modules = {one.name for one in pkgutil.iter_modules(robustly.__path__)} - {"__main__", "cli"}
    assert set(robustly._MODULES) == modules
    for name in modules:
        assert getattr(robustly, name).__name__ == f"robustly.{name}"
    assert set(dir(robustly)) >= {*robustly.__all__, *robustly._MODULES}


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'robustly' has no attribute 'evalute'"):
        robustly.evalute  # noqa: B018


def test_the_tables_without_pytorch_are_those_of_the_package() -> None:
    assert list(suites.SUITE_WORDS) == list(SUITES)
    assert list(suites.CERTIFICATE_NAMES) == list(CERTIFICATES)
    assert (BoundCertificate.halvings, METHODS) == (certify.HALVINGS, certify.METHODS)
    assert certify.LABEL == CERTIFIED
    assert list(SECTION_TYPES) == list(SECTIONS)
    assert tuple(CONVENTIONAL_NETWORKS) == NETWORKS
    assert (Sampling.share, Sampling.confidence) == (audit.SHARE, audit.CONFIDENCE)


def test_the_list_of_suites_has_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites"]) == 0
    lines = capsys.readouterr().out.splitlines()
    *lines, last = lines
    assert [line.split()[0] for line in lines] == list(SUITES)
    assert last == "proofs behind any of them: +certify, +ibp, +crown, +alpha_crown, +bab, as in quick+certify"
    assert all(len(line) < 120 and len(line.split()) > 3 for line in lines)


def test_numbers_of_images_are_stated_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("diagnose", diagnose.COUNT), ("analyse", analyse.COUNT)):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"(default: {count})" in capsys.readouterr().out
