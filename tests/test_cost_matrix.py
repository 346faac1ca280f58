"""Cost matrices: their forms, and each refusal in one sentence."""

from pathlib import Path

import numpy as np
import pytest

from robustly.cost_matrix import CostError, CostMatrix, check_costs, read_costs


def test_the_short_forms_by_hand() -> None:
    assert read_costs("all", 3).rows == ((0, 1, 1), (1, 0, 1), (1, 1, 0))
    assert read_costs("classes:0, 2", 3).rows == ((0, 1, 1), (0, 0, 0), (1, 1, 0))
    assert read_costs("2>0:5, 0>1", 3).rows == ((0, 1, 0), (0, 0, 0), (5, 0, 0))


def test_files_hold_the_same_matrix(tmp_path: Path) -> None:
    matrix = np.array([[0, 0.5, 2], [0, 0, 0], [1, 3e-2, 0]])
    np.save(tmp_path / "c.npy", matrix)
    (tmp_path / "c.csv").write_text("0,0.5,2\n0,0,0\n1,0.03,0\n\n")
    one, two = read_costs(str(tmp_path / "c.npy"), 3), read_costs(str(tmp_path / "c.csv"), 3)
    assert one.rows == two.rows == tuple(map(tuple, matrix.tolist()))
    assert one.digest == two.digest != read_costs("all", 3).digest
    check_costs(str(tmp_path / "c.csv"))


def test_integers_are_costs_too(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", 1 - np.eye(3, dtype=np.uint8))
    assert read_costs(str(tmp_path / "c.npy"), 3).digest == read_costs("all", 3).digest


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((3, 3)) - np.eye(3), "of 3 classes, the model has 4"),
        (np.ones((3, 4)), "3 rows of 4 numbers"),
        (np.ones(4), r"K rows of K numbers, got float64 \(4,\)"),
        (np.array([[0, -1.0], [0, 0]]), "0>1 is -1.0"),
        (np.array([[0, np.nan], [0, 0]]), "0>1 is nan"),
        (np.array([[0, np.inf], [0, 0]]), "0>1 is inf"),
        (np.array([[0, 1.0], [0, 2.0]]), "a correct prediction costs 0, 1>1 is 2.0"),
        (np.zeros((2, 2)), "every cost is 0"),
        (np.array([["0", "1"], ["1", "0"]]), "K rows of K numbers"),
        (np.array([[{}, {}], [{}, {}]], dtype=object), "not a readable .npy"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, matrix: np.ndarray, words: str) -> None:
    file = tmp_path / "c.npy"
    np.save(file, matrix, allow_pickle=True)
    with pytest.raises(CostError, match=words) as found:
        read_costs(str(file), 4)
    assert "\n" not in str(found.value)
    assert str(file) in str(found.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "give 'all', true classes"),
        ("classes:", "is not the number of a class"),
        ("classes:1,x", "'x' is not the number of a class"),
        ("classes:4", "there is no class 4, the model has classes 0..3"),
        ("1>7", "there is no class 7"),
        ("1>2:-3", "1>2 is -3.0"),
        ("1>2:nan", "1>2 is nan"),
        ("1>2:1e308,2>1:1e308", r"costs are at most 1e\+100, 1>2 is 1e\+308"),
        ("1>2:much", "'much' is not a number"),
        ("1>1:3", "1>1 is 3.0"),
        ("1>2:0", "every cost is 0"),
        ("1>2,1>2:4", "given twice"),
        ("nowhere.csv", "nowhere.csv"),
        ("nowhere.npy", "nowhere.npy"),
    ],
)
def test_other_texts_are_refused(text: str, words: str) -> None:
    with pytest.raises(CostError, match=words):
        read_costs(text, 4)


def test_a_text_is_checked_before_the_number_of_classes_is_known(tmp_path: Path) -> None:
    for text in ("all", "classes:3,5", "6>4:1,6>2:5"):
        check_costs(text)
    (tmp_path / "c.csv").write_text("0,a\n1,0\n")
    for text in ("classes:a", "3>3", "1>2:-1", "", str(tmp_path / "c.csv")):
        with pytest.raises(CostError):
            check_costs(text)


def test_the_digest_is_of_the_numbers_alone() -> None:
    rows = ((0.0, 1.0), (2.0, 0.0))
    assert CostMatrix(rows, "one").digest == CostMatrix(rows, "two").digest
    assert CostMatrix(rows).digest != CostMatrix(((0.0, 2.0), (1.0, 0.0))).digest
