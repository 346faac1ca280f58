"""Splits: disjoint, deterministic, in proportion of the classes; official test rows stay apart."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustly.data.rows import Rows, rows_in_memory
from robustly.data.splits import SplitRule, Splits, balanced_order, choose_splits, choose_test

RULE = SplitRule(
    source="made",
    train_split=None,
    test_split=None,
    validation=10,
    test=None,
    train_limit=None,
    test_limit=None,
    subset="first",
    split_seed=0,
    evaluation_only=False,
)


def part(count: int, ordered: bool = False, side: int = 3) -> Rows:
    labels = torch.arange(count) % 5
    images = (torch.arange(count)[:, None, None, None] % 256).expand(-1, 1, side, side).to(torch.uint8)
    return rows_in_memory(images, labels.sort().values if ordered else labels, tuple("abcde"), "made")


def read(parts: dict[str, Rows], rule: SplitRule) -> Splits:
    return Splits(*(chosen.read() for chosen in choose_splits(parts, rule)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 100))
def test_every_prefix_has_the_classes_in_proportion(values: list[int], seed: int) -> None:
    labels = torch.tensor(values)
    order = balanced_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(values)))
    counts = labels.bincount(minlength=5)
    for taken in range(len(values) + 1):
        expected = counts * taken / len(values)
        assert float((labels[order[:taken]].bincount(minlength=5) - expected).abs().max()) <= 3


def test_equal_classes_get_equal_shares() -> None:
    splits = read({"all": part(100, ordered=True)}, RULE)
    for data, share in ((splits.test, 4), (splits.validation, 2), (splits.train, 14)):
        assert data.labels.bincount().tolist() == [share] * 5


def test_without_a_test_split_the_rows_are_shared_three_ways() -> None:
    splits = read({"all": part(100)}, RULE)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (70, 10, 20)
    assert sorted(torch.cat([splits.train.ids, splits.validation.ids, splits.test.ids]).tolist()) == list(
        range(100)
    )
    for data in (splits.train, splits.validation, splits.test):
        assert torch.equal(data.images[:, 0, 0, 0].to(torch.int64), data.ids)
        assert torch.equal(data.labels, data.ids % 5)


def test_the_test_set_does_not_depend_on_the_validation_set() -> None:
    few, many = (read({"all": part(100)}, replace(RULE, validation=count)) for count in (5, 40))
    assert few.test.digest() == many.test.digest()


def test_choices_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = read({"all": part(100)}, RULE)
    torch.manual_seed(1)
    again, other = read({"all": part(100)}, RULE), read({"all": part(100)}, replace(RULE, split_seed=1))
    for name in ("train", "validation", "test"):
        assert getattr(first, name).digest() == getattr(again, name).digest()
        assert getattr(first, name).digest() != getattr(other, name).digest()


def test_an_official_test_split_is_kept_in_its_order() -> None:
    parts = {"train": part(60), "test": part(20)}
    splits = read(parts, RULE)
    assert splits.test.ids.tolist() == list(range(60, 80))
    assert torch.equal(splits.test.images, part(20).read(torch.arange(20)))
    assert sorted(torch.cat([splits.train.ids, splits.validation.ids]).tolist()) == list(range(60))
    assert splits.train.ids.tolist() == sorted(splits.train.ids.tolist())
    assert choose_test(parts, RULE).read().digest() == splits.test.digest()


def test_limits_are_prefixes_and_keep_ids() -> None:
    parts = {"train": part(60), "test": part(20)}
    whole, some = read(parts, RULE), read(parts, replace(RULE, train_limit=7, test_limit=3))
    assert torch.equal(some.train.ids, whole.train.ids[:7])
    assert some.test.ids.tolist() == [60, 61, 62]
    assert some.validation.digest() == whole.validation.digest()


def test_a_limit_that_would_lose_classes_is_refused() -> None:
    parts = {"train": part(60, ordered=True), "test": part(20)}
    with pytest.raises(ValueError, match=r"sorted by class.*train_limit.*set subset to balanced"):
        read(parts, replace(RULE, train_limit=20))
    balanced = read(parts, replace(RULE, train_limit=20, subset="balanced"))
    assert balanced.train.labels.bincount().tolist() == [4] * 5


def test_without_a_setting_a_limit_keeps_all_classes_of_sorted_rows() -> None:
    rule = replace(RULE, train_limit=20, test_limit=10, subset=None)
    sorted_splits = read({"train": part(60, ordered=True), "test": part(20, ordered=True)}, rule)
    assert sorted_splits.train.labels.bincount().tolist() == [4] * 5
    assert sorted_splits.test.labels.bincount().tolist() == [2] * 5
    mixed = {"train": part(60), "test": part(20)}
    found, first = read(mixed, rule), read(mixed, replace(rule, subset="first"))
    assert found.train.digest() == first.train.digest()
    assert found.test.digest() == first.test.digest()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(5000, 500), (50_000, 500), (4000, 400), (60, 6), (40, 5), (20, 4), (5, 1), (3, 1)],
)
def test_the_validation_set_is_a_share_of_the_rows(rows: int, expected: int) -> None:
    train, validation, test = choose_splits({"all": part(rows)}, replace(RULE, validation=None))
    assert len(validation.positions) == expected
    assert len(train.positions) + len(validation.positions) + len(test.positions) == rows
    official = choose_splits({"train": part(rows), "test": part(9)}, replace(RULE, validation=None))
    assert len(official[1].positions) == expected


def hidden(count: int) -> Rows:
    def read_none(index: Tensor) -> Tensor:
        raise AssertionError("rows without labels are not read")

    return Rows(torch.full((count,), -1), tuple("abcde"), "hidden", read_none)


def test_a_split_without_labels_is_refused_only_where_it_is_used() -> None:
    parts = {"train": part(60), "validation": part(20), "test": hidden(6)}
    splits = read(parts, replace(RULE, test_split="validation"))
    assert len(splits.test) == 20
    for rule in (RULE, replace(RULE, evaluation_only=True)):
        with pytest.raises(ValueError, match=r"6 of 6 rows have no label.*set test_split to .*\(train, val"):
            choose_test(parts, rule)


def test_evaluation_prefers_the_test_split_and_then_the_validation_split() -> None:
    rule = replace(RULE, evaluation_only=True)
    assert len(choose_test({"train": part(60), "val": part(20), "test": part(7)}, rule).positions) == 7
    assert len(choose_test({"train": part(60), "val": part(20)}, rule).positions) == 20
    assert len(choose_test({"train": part(60)}, rule).positions) == 60


def test_only_chosen_images_are_decoded() -> None:
    asked: list[Tensor] = []

    def spy(index: Tensor) -> Tensor:
        asked.append(index)
        return part(60).read(index)

    parts = {"train": Rows(part(60).labels, tuple("abcde"), "made", spy), "test": part(20)}
    choose_test(parts, RULE).read()
    assert asked == []
    read(parts, replace(RULE, train_limit=7))
    assert sorted(len(index) for index in asked) == [7, 10]


def test_named_splits_and_evaluation_only() -> None:
    parts = {"train": part(60), "validation": part(20)}
    assert choose_test(parts, replace(RULE, test_split="validation")).read().ids.tolist() == list(range(60, 80))
    only = choose_test({"test": part(20)}, replace(RULE, evaluation_only=True)).read()
    assert only.ids.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        (("few",), {"validation": None}, "1 validation and 1 test .* none of its 2 .* set evaluation_only"),
        (("all",), {"validation": 90}, "90 validation and 20 test examples leave none of its 100"),
        (("train", "test"), {"validation": 100}, "leave none"),
        (("train", "test"), {"test": 5}, "has its own test split of 100 examples.*use test_limit"),
        (("train", "test"), {"train_limit": 91}, "train_limit is 91 but the split has only 90"),
        (("all",), {"test_limit": 21}, "test_limit is 21 but the split has only 20"),
        (("train", "test"), {"test_split": "tset"}, r"no split 'tset' \(test_split\): it has train, test"),
        (("a", "b"), {}, "set train_split to one of a, b"),
        (("test",), {"evaluation_only": True}, "nothing to train on"),
    ],
)
def test_impossible_splits_are_refused(names: tuple[str, ...], changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read({name: part(2 if name == "few" else 100) for name in names}, replace(RULE, **changes))  # type: ignore[arg-type]


def test_splits_that_do_not_belong_together_are_refused() -> None:
    data = choose_test({"all": part(100)}, RULE).read()
    with pytest.raises(ValueError, match="share examples"):
        Splits(data, data, data)
    apart = (replace(data, ids=data.ids + 1000), replace(data, ids=data.ids + 2000))
    with pytest.raises(ValueError, match="has the classes"):
        Splits(data, replace(apart[0], classes=tuple("vwxyz")), apart[1])
    with pytest.raises(ValueError, match="set image_size or channels"):
        read({"train": part(60), "test": part(20, side=4)}, RULE)
