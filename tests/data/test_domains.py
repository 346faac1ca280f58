"""Named domains: their text forms, their splits, and what the left-out domain cannot influence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustly.data import DataConfig, ImageData, Splits, load_extra, load_splits, load_test, row_digests
from robustly.data.domains import DomainRows, domain_splits, matched
from robustly.data.mixing import FIRST_ID
from robustly.data.rows import rows_in_memory
from robustly.data.splits import SplitRule
from robustly.evidence.domain_names import MOST, STRIDE, Domain, parse_domains
from robustly.experiments.configuration import build_config
from robustly.settings import SettingsError

THREE = {"plain": "a.npz", "inverted": "b.npz", "turned": "c.npz"}


def write(file: Path, seed: int, count: int = 40, size: int = 8, classes: int = 4) -> Path:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, size, size), dtype=np.uint8)
    np.savez(file, images=images, labels=np.arange(count) % classes)
    return file


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {name: str(write(tmp_path / f"{name}.npz", seed)) for seed, name in enumerate(THREE)}


def config(files: dict[str, str], left_out: str = "turned", **settings: object) -> DataConfig:
    return DataConfig(domains=dict(files), leave_out=left_out, **settings)  # type: ignore[arg-type]


def same(one: ImageData, other: ImageData) -> bool:
    return one.digest() == other.digest() and one.classes == other.classes


def test_text_list_and_mapping_are_the_same_settings() -> None:
    forms = ["plain=a.npz, inverted=b.npz,turned=c.npz", [f"{name}={file}" for name, file in THREE.items()], THREE]
    found = {DataConfig(domains=form, leave_out="turned") for form in forms}  # type: ignore[arg-type]
    (only,) = found
    assert only.domains == ("plain=a.npz", "inverted=b.npz", "turned=c.npz")
    assert only.source == "domains plain, inverted without turned"
    assert [str(one) for one in only.named_domains] == list(only.domains)
    assert parse_domains({0: "a", 15: "b,c"}) == (Domain("0", "a"), Domain("15", "b,c"))
    assert DataConfig(domains={0: "a", 15: "b"}, leave_out=15).leave_out == "15"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"domains": "photo=a", "leave_out": "photo"}, "there is only photo: name at least two"),
        ({"domains": {}, "leave_out": "photo"}, "there is none: name at least two"),
        ({"domains": "photo=a,photo=b", "leave_out": "photo"}, "the name 'photo' occurs twice"),
        ({"domains": "photo=a,art=./a", "leave_out": "art"}, "photo and art have the same source './a'"),
        ({"domains": "photo=a,art", "leave_out": "art"}, "'art' names no source"),
        ({"domains": "photo=a,art=", "leave_out": "art"}, "'art=' names no source"),
        ({"domains": "photo=a,=b", "leave_out": "art"}, "'' is not a name of a domain"),
        ({"domains": "photo=a,my art=b", "leave_out": "photo"}, "'my art' is not a name of a domain"),
        (
            {"domains": "photo=a,art=b"},
            "leave_out is missing: name the domain to leave out of training: photo, art",
        ),
        ({"domains": "photo=a,art=b", "leave_out": "Art"}, "no domain 'Art', did you mean 'art'?"),
        ({"leave_out": "photo"}, "leave_out is 'photo', but there are no domains"),
        ({"domains": 3, "leave_out": "photo"}, "data.domains: expected text or a list"),
        ({"domains": [3], "leave_out": "photo"}, "data.domains: expected text or a list"),
        ({"domains": ",".join(f"d{n}=s{n}" for n in range(1000)), "leave_out": "d1"}, "at most 999"),
    ],
)
def test_wrong_domains_are_refused_at_the_door(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        build_config({"data": settings})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_ids_name_the_domain_and_stay_below_those_of_extra_images() -> None:
    assert (MOST + 1) * STRIDE <= FIRST_ID


def test_the_splits_are_those_of_each_domain_alone(files: dict[str, str]) -> None:
    splits = load_splits(config(files))
    alone = {name: load_splits(DataConfig(file)) for name, file in files.items()}
    for place, name in enumerate(files, 1):
        parts = {"test": splits.test} if name == "turned" else {
            "train": splits.train, "validation": splits.validation, "test": splits.source_test,
        }  # fmt: skip
        for part, joined in parts.items():
            assert joined is not None
            here, own = joined.ids // STRIDE == place, getattr(alone[name], part)
            assert joined.ids[here].sub(place * STRIDE).tolist() == own.ids.tolist()
            assert torch.equal(joined.images[here], own.images)
            assert torch.equal(joined.labels[here], own.labels)
    assert set((splits.train.ids // STRIDE).tolist()) == {1, 2}
    assert set((splits.validation.ids // STRIDE).tolist()) == {1, 2}
    assert set((splits.test.ids // STRIDE).tolist()) == {3}
    assert (splits.validation.ids[:4] // STRIDE).tolist() == [1, 2, 1, 2], "the first images are of all domains"


def test_test_images_of_a_domain_are_the_same_in_both_roles(files: dict[str, str]) -> None:
    as_target = load_test(config(files, "plain"))
    sources = load_test(config(files, "turned"), "source")
    of_plain = sources.select(sources.ids // STRIDE == 1)
    assert torch.equal(as_target.ids, of_plain.ids)
    assert torch.equal(as_target.images, of_plain.images)
    splits = load_splits(config(files, "turned"))
    assert splits.source_test is not None
    assert torch.equal(sources.ids, splits.source_test.ids)
    assert same(replace(load_test(config(files)), source=""), replace(splits.test, source=""))


def test_limits_hold_for_each_domain(files: dict[str, str]) -> None:
    splits = load_splits(config(files, train_limit=8, test_limit=3, validation=5))
    assert splits.source_test is not None
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test, splits.source_test)]
    assert sizes == [16, 10, 3, 6]


def seen_by_training(splits: Splits) -> list[str]:
    return [splits.train.digest(), splits.validation.digest(), *splits.train.classes]


def test_the_left_out_domain_changes_nothing_that_training_sees(files: dict[str, str], tmp_path: Path) -> None:
    before = seen_by_training(load_splits(config(files, "plain")))
    other = {**files, "plain": str(write(tmp_path / "other.npz", seed=9, count=93))}
    after = load_splits(config(other, "plain"))
    assert seen_by_training(after) == before
    assert len(after.test) == 18
    renamed = {"x": files["plain"], "y": files["inverted"], "z": files["turned"]}
    assert seen_by_training(load_splits(config(renamed, "x"))) == before, "names are labels only"


def domain(name: str, place: int, classes: tuple[str, ...], seed: int = 0, size: int = 4) -> DomainRows:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (12, 1, size, size), generator=generator, dtype=torch.uint8)
    rows = rows_in_memory(images, torch.arange(12) % len(classes), classes, name)
    rule = SplitRule(name, None, None, None, None, None, None, None, 0, False)
    return DomainRows(Domain(name, name), place, {"all": rows}, rule)


def test_classes_are_matched_by_name_in_the_order_of_the_first_source() -> None:
    photo, art = domain("photo", 1, ("dog", "guitar")), domain("art", 2, ("Guitar", "dog"), seed=1)
    for left_out, order in (("photo", ("Guitar", "dog")), ("art", ("dog", "guitar"))):
        found = matched([photo, art], left_out)
        assert [one.classes for one in found] == [order, order]
        names = [[order[int(label)].lower() for label in one.parts["all"].labels[:2]] for one in found]
        assert names == [["dog", "guitar"], ["guitar", "dog"]]


def test_different_classes_are_refused_with_the_missing_names() -> None:
    photo, art = domain("photo", 1, ("dog", "owl")), domain("art", 2, ("cat", "dog", "elk"))
    with pytest.raises(ValueError, match="photo lacks cat, elk; art lacks owl: give all the same classes"):
        matched([photo, art], "art")


def test_different_shapes_are_refused_by_name() -> None:
    parts = [
        domain("photo", 1, ("a", "b")),
        domain("art", 2, ("a", "b"), 1),
        domain("ink", 3, ("a", "b"), 2, size=5),
    ]
    for left_out in ("ink", "photo"):
        with pytest.raises(
            ValueError, match=r"the domains \w+ and ink have images of the shapes .* set data.image"
        ):
            domain_splits(parts, left_out)


def test_test_images_of_the_target_among_the_training_images_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", 0)
    content = np.load(file)
    turned_round = {name: content[name][::-1] for name in ("images", "labels")}
    np.savez(tmp_path / "b.npz", **turned_round)
    files = {"one": str(file), "two": str(tmp_path / "b.npz"), "three": str(write(tmp_path / "c.npz", 1))}
    with pytest.raises(
        ValueError, match=r"\d of the 8 test images of the left-out domain two are among the training"
    ):
        load_splits(config(files, "two"))


def test_extra_images_are_not_among_the_test_images_of_any_domain(files: dict[str, str], tmp_path: Path) -> None:
    extra = write(tmp_path / "extra.npz", seed=20)
    given = config(files, extra_source=str(extra), extra_fraction=0.5)
    found = load_extra(given, load_splits(given))
    assert found is not None
    assert len(found.data) == 40
    of_target = replace(given, extra_source=files["turned"])
    with pytest.raises(ValueError, match=r"40 of the extra images of .* are of the left-out domain turned"):
        load_extra(of_target, load_splits(of_target))
    leaking = replace(given, extra_source=files["inverted"])
    with pytest.raises(ValueError, match="are validation or test images"):
        load_extra(leaking, load_splits(leaking))


def test_an_array_of_cifar_10_c_is_a_domain(tmp_path: Path, files: dict[str, str]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5 * 20, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.arange(20) % 4)
    given = config({"plain": files["plain"], "fog": f"{tmp_path}/fog.npy:2"}, "fog")
    test = load_test(given)
    rows = test.ids - 2 * STRIDE
    assert torch.equal(test.images, torch.from_numpy(images[20 + rows.numpy()]).permute(0, 3, 1, 2))
    assert test.labels.tolist() == (rows % 4).tolist()
    for wrong, words in (("fog.npy:6", "the severity is '6'"), ("fog.npy:", "''"), ("rain.npy:1", "no such file")):
        with pytest.raises(ValueError, match=words):
            load_test(replace(given, domains={"plain": files["plain"], "fog": f"{tmp_path}/{wrong}"}))


def test_a_source_that_is_missing_is_named(files: dict[str, str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz' is not a file or folder"):
        load_splits(config({**files, "turned": "nowhere.npz"}))


def test_digests_tell_domains_apart(files: dict[str, str]) -> None:
    given = load_splits(config(files))
    swapped = load_splits(config({**files, "inverted": files["turned"], "turned": files["inverted"]}))
    assert not row_digests(given.test).same_in(row_digests(swapped.test)).any()
