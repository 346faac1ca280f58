import dataclasses
import re

import pytest
from synthetic_run import Synthetic, write_synthetic_run

from robustly.reports import read_run, render
from robustly.reports.source_names import named_sources, shown_path, without_folders


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/data/cells", "cells"),
        ("/data", "data"),
        ("/home/ada lovelace/my data", "my data"),
        (r"C:\Users\Ada\cells.npz", "cells.npz"),
        (r"\\server\share\cells", "cells"),
        ("~/data/cells/", "cells"),
        ("file:///home/ada/x.npz", "x.npz"),
        ("linf:0.3@/home/ada/mask.png", "linf:0.3@mask.png"),
        ("Weights of /home/ada/net.pt, loaded twice.", "Weights of net.pt, loaded twice."),
        ("cannot read '/home/ada/a.png': no such file", "cannot read 'a.png': no such file"),
        ("/home/ada/a.png: cannot be read, and so /home/ada/b.png", "a.png: cannot be read, and so b.png"),
        ("linf:8/255", "linf:8/255"),
        ("and/or, 1/2, L2 / L1", "and/or, 1/2, L2 / L1"),
        ("https://example.org/data/cells", "https://example.org/data/cells"),
        ("user/name", "user/name"),
        ("runs/demo/dynat", "runs/demo/dynat"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_absolute_paths_become_names_and_other_texts_stay(text, shown):
    assert without_folders(text) == shown


def test_commands_keep_relative_paths_only(tmp_path):
    from pathlib import Path

    assert shown_path(Path("runs/demo")) == "runs/demo"
    assert shown_path(tmp_path / "demo") == "demo"
    assert shown_path(Path("../other/demo")) == "demo"


def test_values_are_changed_to_any_depth_and_kept_where_nothing_changes():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        source: str

    @dataclasses.dataclass(frozen=True)
    class Outer:
        parts: tuple
        table: dict

    old = Outer((Inner("/a/b/c"), 1, None), {"x": ["/a/b", 2.5]})
    assert named_sources(old) == Outer((Inner("c"), 1, None), {"x": ["b", 2.5]})
    same = Inner("mnist5k")
    assert named_sources(same) is same


def test_no_absolute_path_is_on_a_page(tmp_path):
    secret = "/home/ada/secret"
    options = Synthetic(
        count=80, epochs=2, warnings=(f"Weights of {secret}/net.pt.",), note=f"From {secret}/notes.txt"
    )
    run = write_synthetic_run(tmp_path / "runs", options)
    (run / "config.yaml").write_text(
        f"data: {{source: {secret}/cells}}\nnetworks: {{a: {{weights: [{secret}/w.pt]}}}}"
    )
    evidence = read_run(run)
    evaluation = evidence.evaluation
    data = dataclasses.replace(evaluation.data, source=f"{secret}/cells", settings={"source": f"{secret}/cells"})
    broken = {evaluation.suite.names[0]: f"cannot write {secret}/x.bin"}
    changed = dataclasses.replace(evaluation, data=data, failures=broken)
    for runs in ([dataclasses.replace(evidence, evaluation=changed)], [evidence, evidence]):
        page = render(runs)
        body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
        assert "secret" not in page
        assert str(tmp_path) not in page
        assert "robustly audit" in body
        assert "net.pt" in body
    raw = dataclasses.replace(evidence, evaluation=None)
    assert str(tmp_path) not in render([raw])
