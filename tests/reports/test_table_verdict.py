import pytest
from synthetic_run import Synthetic, write_synthetic_run

from robustly.reports.pages.methods_page import methods_page
from robustly.reports.tables.comparison import marked
from robustly.reports.tables.evaluations import read_evaluated
from robustly.reports.tables.method_tables import method_tables
from robustly.reports.tables.table_verdict import table_verdict
from robustly.statistics import Proportion


@pytest.fixture
def runs(tmp_path):
    masking = ("Square broke 3.",)
    options = [
        Synthetic(name="low", robust=0.3, count=200, epochs=2),
        Synthetic(name="high", robust=0.9, count=200, epochs=2, seed=1),
        Synthetic(name="masked", robust=0.97, count=200, epochs=2, seed=2, masking=masking),
    ]
    return [read_evaluated(write_synthetic_run(tmp_path, one)) for one in options]


def test_the_best_row_without_suspicion_comes_first(runs):
    (table,) = method_tables(runs, "run")
    found = table_verdict(table)
    scores = {row.name: f"{100 * row.cells[table.robust_column].value.share:.1f}\u202f%" for row in table.rows}
    assert found.sentence == (
        f"Of 3 runs, high holds {scores['high']} of 200 test examples of mnist5k against all attacks under "
        f"linf:0.3; the next, low, {scores['low']}."
    )
    assert found.doubts == ("masked is not ranked: masking is suspected.",)
    assert found.sentence in methods_page([table])


def test_a_table_in_doubt_has_no_order(runs, tmp_path):
    (masked,) = method_tables(runs[2:], "run")
    assert table_verdict(masked).sentence == "No row can be ranked by its robust accuracy."
    near = write_synthetic_run(tmp_path, Synthetic(name="near", robust=0.91, count=200, epochs=2, seed=1))
    (table,) = method_tables([runs[1], read_evaluated(near)], "run")
    assert table_verdict(table).doubts == (
        "The difference between near and high may be chance: their intervals overlap.",
    )


def test_equal_numbers_have_no_best():
    same = [Proportion(5, 10), Proportion(5, 10)]
    assert not any(one.best for one in marked(same, [True, True], comparable=True))
    assert [one.best for one in marked([Proportion(6, 10), *same], [True] * 3, comparable=True)] == [
        True,
        False,
        False,
    ]
