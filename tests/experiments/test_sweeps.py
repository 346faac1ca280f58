"""The grid of a sweep, the names of its runs, its manifest, and the states of its runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from robustly.experiments.configuration import RunConfig
from robustly.experiments.run_folder import RunError, create_run, open_run
from robustly.experiments.sweep_folders import read_sweep, refuse_another, state_of, write_sweep
from robustly.experiments.sweeps import Sweep, as_plain, cells_of, parse_over, sweep_from
from robustly.settings import SettingsError

TWO = Sweep(
    ("mnist5k/pgd_at", "mnist5k/trades"),
    (0, 1),
    {"threat": ("linf:0.1", "linf:8/255")},
    {"training.epochs": "2"},
)
FOLDER = Path("/nowhere")
DEAD = 99_999_999  # number of no process


def read(name: str) -> dict[str, object]:
    """A tiny recipe of any name; the one of TRADES differs from all others."""
    if name == "nowhere":
        raise SettingsError("unknown recipe 'nowhere'")
    inner = {"name": "pgd", "steps": 2}
    loss = {"name": "trades", "beta": 3.0 if "trades" in name else 6.0}
    return {"recipe": name, "method": {"inner": inner, "loss": loss}}


def names_of(sweep: Sweep) -> list[str]:
    return [cell.name for cell in cells_of(sweep, FOLDER)]


def configs_of(sweep: Sweep) -> list[RunConfig]:
    return [cell.config(read) for cell in cells_of(sweep, FOLDER)]


def test_the_grid_is_every_combination_recipes_outermost() -> None:
    names = names_of(TWO)
    assert names[:4] == [
        "mnist5k_pgd_at__threat=linf-0.1__seed=0",
        "mnist5k_pgd_at__threat=linf-0.1__seed=1",
        "mnist5k_pgd_at__threat=linf-8-255__seed=0",
        "mnist5k_pgd_at__threat=linf-8-255__seed=1",
    ]
    assert len(names) == 8
    configs = configs_of(TWO)
    assert [config.seed for config in configs] == [0, 1] * 4
    assert [str(config.threat) for config in configs] == (["linf:0.1"] * 2 + ["linf:8/255"] * 2) * 2
    assert {config.training.epochs for config in configs} == {2}


@given(st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=6, unique=True))
def test_any_value_gives_a_name_of_its_own_that_any_file_system_takes(values: list[str]) -> None:
    names = names_of(Sweep(("some/recipe", "folder/mine.yaml"), (0,), {"data.source": tuple(values)}))
    assert len({name.casefold() for name in names}) == 2 * len(values)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,250}", name) for name in names)


def test_a_name_depends_on_nothing_but_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(("r",), (0,), {"data.source": ("a b", "a  b", "A-b")})
    before = names_of(sweep)
    monkeypatch.chdir(tmp_path)
    assert [cell.name for cell in cells_of(sweep, tmp_path)] == before
    assert [name[:24] for name in before] == ["r__source=a-b__seed=0__" + name[23] for name in before[:2]] + [
        "r__source=A-b__seed=0__" + before[2][23]
    ]


def test_a_key_is_shown_by_its_last_word_where_that_tells_enough() -> None:
    axes = {"method.loss.beta": ("1",), "model.width": ("1",), "guide.width": ("1",)}
    assert names_of(Sweep(("r",), over=axes)) == ["r__beta=1__model.width=1__guide.width=1__seed=0"]
    assert names_of(Sweep(("r",), over={"model.name": ("x",)})) == ["r__model.name=x__seed=0"]


def test_a_part_is_chosen_before_its_settings_are() -> None:
    axis = {"method.loss": ("trades", "adversarial")}
    fine = Sweep(("r",), over=axis, settings={"method.inner.steps": "3", "method.inner": "pgd"})
    assert [config.method_settings["loss"]["name"] for config in configs_of(fine)] == ["trades", "adversarial"]
    with pytest.raises(SettingsError, match=r"r__loss=adversarial__seed=0: .*beta"):
        configs_of(replace(fine, settings={"method.loss.beta": "3"}))


def test_a_cell_has_the_words_of_its_commands() -> None:
    (cell,) = cells_of(Sweep(("r",), evaluate=True), Path("/some where"))
    folder = "/some where/r__seed=0"
    assert cell.commands == [["train", "--resume", folder], ["evaluate", folder, "--keep"]]
    here, threads, train, evaluate = replace(cell, threads=3, started_in=Path("/a b")).shell_command.split(" && ")
    assert (here, threads) == ("cd '/a b'", "export OMP_NUM_THREADS=3")
    assert train.endswith(f"-m robustly train --resume '{folder}'")
    assert evaluate.endswith(f"-m robustly evaluate '{folder}' --keep")
    trusted = replace(cell, trust_code=True, evaluations=())
    assert trusted.commands == [["train", "--resume", folder, "--trust-code"]]


def test_a_trained_cell_is_not_trained_again(tmp_path: Path) -> None:
    (cell,) = cells_of(Sweep(("r",), evaluate=True), tmp_path)
    cell.folder.mkdir()
    (cell.folder / "model.safetensors").touch()
    assert cell.commands == [["evaluate", str(cell.folder), "--keep"]]


def test_a_comma_in_brackets_belongs_to_its_value() -> None:
    axis = parse_over("schedule.milestones=[0.5, 0.75],[0.9]")
    assert axis == ("schedule.milestones", ("[0.5, 0.75]", "[0.9]"))
    assert parse_over("method.label-smoothing=1,2") == ("method.label_smoothing", ("1", "2"))
    assert parse_over(
        "threat=affine:rotation=9,shift=1, linf:0.1,rotation:3+patch:2,physical_patch:3,scale=0.1"
    ) == (
        "threat",
        ("affine:rotation=9,shift=1", "linf:0.1", "rotation:3+patch:2", "physical_patch:3,scale=0.1"),
    )
    assert parse_over("method.loss={a: 1, b: [2, 3]},x") == ("method.loss", ("{a: 1, b: [2, 3]}", "x"))


@pytest.mark.parametrize("text", ["", "threat", "threat=", "=1", "threat=linf:0.1,", "seed=1,2"])
def test_an_axis_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        Sweep(("r",), over=dict([parse_over(text)]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipes": ()}, "name at least one recipe"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (0, -1)}, "at least 0"),
        ({"seeds": (1, 2, 1)}, "once"),
        ({"recipes": ("a", "a")}, "once"),
        ({"over": {"threat": ("l2:1", "l2:1")}}, "once"),
        ({"settings": {"threat": "l2:1"}}, "threat is both swept over and set"),
        ({"settings": {"seed": "1"}}, "--seeds"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        cells_of(replace(TWO, **change), FOLDER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (Sweep(("nowhere",)), "unknown recipe 'nowhere'"),
        (Sweep(("r",), over={"trainin.epochs": ("1",)}), "did you mean 'training'"),
        (Sweep(("r",), over={"training.epochs": ("1", "many")}), "r__epochs=many__seed=0: training.epochs"),
        (Sweep(("r",), over={"threat": ("linf:0.1", "linf:30")}), "r__threat=linf-30__seed=0: threat"),
    ],
)
def test_every_cell_is_checked(sweep: Sweep, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        configs_of(sweep)


def test_a_manifest_reads_back_as_the_same_sweep(tmp_path: Path) -> None:
    assert read_sweep(tmp_path / "new") is None
    write_sweep(tmp_path, TWO)
    assert read_sweep(tmp_path) == TWO
    refuse_another(tmp_path, replace(TWO, evaluate=True), TWO)
    for change in ({"seeds": (0, 1, 2)}, {"over": {}}, {"settings": {}}, {"recipes": ("mnist5k/trades",)}):
        with pytest.raises(RunError, match=f"has another sweep: its {next(iter(change))} are"):
            refuse_another(tmp_path, replace(TWO, **change), TWO)  # type: ignore[arg-type]


def test_a_folder_of_something_else_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / ".sweep.yaml.1.part").touch()  # of a sweep that was killed as it began
    assert read_sweep(tmp_path) is None
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="has no sweep"):
        read_sweep(tmp_path)
    with pytest.raises(RunError, match="has no sweep"):
        read_sweep(tmp_path / "thesis.tex")


def test_a_file_of_a_sweep_may_nest_its_settings_and_have_numbers() -> None:
    text = """
    recipes: [mnist5k/pgd_at]
    seeds: [0, 1]
    over: {method.loss.beta: [1, 6.0], data.augmentation.flip: [true]}
    settings: {training: {epochs: 2, batch_size: 32}, model.width: 0.25}
    evaluate: true
    """
    sweep = sweep_from(yaml.safe_load(text), "mine.yaml")
    assert sweep.over == {"method.loss.beta": ("1", "6.0"), "data.augmentation.flip": ("true",)}
    assert sweep.settings == {"training.epochs": "2", "training.batch_size": "32", "model.width": "0.25"}
    assert sweep.evaluate
    assert sweep_from(as_plain(sweep), "again") == sweep


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"recipes": "mnist5k/pgd_at"},
        {"recipes": [3]},
        {"recipes": ["r"], "seeds": 3},
        {"recipes": ["r"], "seeds": [True]},
        {"recipes": ["r"], "seeds": [-1]},
        {"recipes": ["r"], "over": ["threat"]},
        {"recipes": ["r"], "over": {"threat": "linf:0.1"}},
        {"recipes": ["r"], "over": {"threat": []}},
        {"recipes": ["r"], "settings": [1]},
        {"recipes": ["r"], "evaluate": "yes"},
        {"recipes": ["r"], "sedes": [1]},
    ],
)
def test_a_file_of_another_shape_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"^mine\.yaml: "):
        sweep_from(plain, "mine.yaml")


def test_a_run_is_written_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (tmp_path / f".run.{DEAD}.part").mkdir()  # of a sweep that was killed as it wrote
    (tmp_path / f".run.{DEAD}.part" / ".config.yaml.1.part").touch()
    create_run(folder, configs_of(TWO)[0])
    assert open_run(folder).seed == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(RunError, match="exists already"):
        create_run(folder, configs_of(TWO)[1])


def test_a_cell_has_the_settings_of_its_folder_once_there_is_one(tmp_path: Path) -> None:
    cell = cells_of(TWO, tmp_path)[0]
    create_run(cell.folder, replace(cell.config(read), seed=7))
    assert cell.config(read).seed == 7


def test_states_are_read_from_the_folder(tmp_path: Path) -> None:
    def status(state: str, best: int) -> None:
        content = {"state": state, "best_epoch": best, "seconds": 3.0, "message": "why", "threads": 2}
        (tmp_path / "status.json").write_text(json.dumps(content))

    assert state_of(tmp_path / "nowhere", False).state == "waiting"
    assert state_of(tmp_path, False).state == "waiting"
    status("diverged", 0)
    assert (state_of(tmp_path, False).state, state_of(tmp_path, False).message) == ("diverged", "why")
    status("stopped", 2)
    rows = "epoch,validation_clean_accuracy,validation_robust_accuracy\n1,0.5,0.25\n2,0.75,0.5\n"
    (tmp_path / "metrics.csv").write_text(rows)
    found = state_of(tmp_path, True)
    assert (found.state, found.best_epoch, found.clean, found.robust) == ("unfinished", 2, 0.75, 0.5)
    assert (found.threads, found.evaluated) == (2, None)
    (tmp_path / "model.safetensors").touch()
    assert state_of(tmp_path, True).state == "trained"
    assert state_of(tmp_path, False).state == "finished"
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/summary.json").write_text('{"worst_case": {"accuracy": 0.4}}')
    assert (state_of(tmp_path, True).state, state_of(tmp_path, True).evaluated) == ("finished", 0.4)
    for damage in ("", "[]", "{}", "[1"):
        (tmp_path / "evaluation/summary.json").write_text(damage)
        with pytest.raises(RunError, match=r"evaluation is damaged .*: remove it to evaluate the run again"):
            state_of(tmp_path, True)
    for damage in ("", "[]", "{}", "[1"):
        (tmp_path / "status.json").write_text(damage)
        with pytest.raises(RunError, match="is damaged"):
            state_of(tmp_path, True)
