import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robustly
from robustly import PGD, ImageData, Suite, ThreatModel
from robustly.evaluation import EvaluationError

PIXELS = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
THREAT, ATTACK = ThreatModel("linf", "1/255"), PGD(steps=3)


def linear(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).eval()
    with torch.no_grad():
        net[1].bias -= net(PIXELS / 255).mean(0)  # so that each class is predicted for some
    return net


NET = linear()
LABELS = NET(PIXELS / 255).argmax(1)
NAMED = ImageData(PIXELS, LABELS, torch.arange(24), tuple("abcd"), "memory")


def robust(result: robustly.Result) -> int:
    return result.summary["worst_case"]["robust"]


def quickly(model, data, threat=THREAT, suite=ATTACK, **settings):
    return robustly.evaluate(model, data, threat, suite, batch_size=24, curve="off", **settings)


EXPECTED = robust(quickly(NET, NAMED))


@pytest.mark.parametrize(
    "data",
    [
        (PIXELS, LABELS),
        (PIXELS / 255, LABELS.to(torch.int16)),
        (PIXELS.permute(0, 2, 3, 1).numpy(), LABELS.numpy().astype(np.uint8)),
        TensorDataset(PIXELS / 255, LABELS),
        DataLoader(TensorDataset(PIXELS / 255, LABELS), batch_size=5, shuffle=True),
    ],
    ids=["uint8", "floats", "arrays", "dataset", "shuffled loader"],
)
def test_every_kind_of_data_gives_the_verdicts_of_the_plain_one(data):
    assert 0 < EXPECTED < 24
    result = quickly(NET, data)
    assert robust(result) == EXPECTED
    assert result.audit().passed


@pytest.mark.parametrize("threat", ["linf:1/255", " LINF:0.00392156862745098 ", THREAT])
@pytest.mark.parametrize("suite", [ATTACK, [ATTACK], Suite("mine", {"pgd": ATTACK})])
def test_threats_and_attacks_are_text_or_values(threat, suite):
    assert robust(quickly(NET, NAMED, threat, suite)) == EXPECTED


def test_a_subset_of_classes_is_found_by_name_or_number():
    wide = linear(9)
    labels = wide(PIXELS / 255).argmax(1)
    few = labels < 7
    by_number = quickly(wide, (PIXELS[few], labels[few]))
    assert by_number.summary.data.classes == tuple("012345678")
    names = tuple(f"n{place}" for place in range(9))
    order = torch.tensor([2, 0, 1, 6, 5, 4, 3])  # another order than that of the outputs
    data = ImageData(
        PIXELS[few],
        order.argsort()[labels[few]],
        torch.arange(int(few.sum())),
        tuple(names[place] for place in order.tolist()),
        "folder",
    )
    with pytest.raises(ValueError, match=r"has 7 classes .* but the model has 9 outputs: .*classes="):
        quickly(wide, data)
    assert robust(quickly(wide, data, classes=names)) == robust(by_number)
    wide.config = SimpleNamespace(id2label=dict(enumerate(names)))
    assert robust(quickly(wide, data)) == robust(by_number)
    with pytest.raises(ValueError, match="7 classes but the model has 4 outputs"):
        quickly(NET, data)


def test_a_model_of_one_logit_has_two_classes():
    one = linear(1)
    with torch.no_grad():
        one[1].bias -= one(PIXELS / 255).median()
    labels = (one(PIXELS / 255)[:, 0] > 0).long()
    result = quickly(one, (PIXELS, labels))
    assert result.summary.metrics.clean.share == 1
    assert 0 < robust(result) < 24


def test_normalised_images_are_refused_and_a_wrapped_model_is_not():
    with pytest.raises(ValueError, match=r"robustly\.wrap"):
        quickly(NET, ((PIXELS / 255 - 0.5) / 0.25, LABELS))
    inner = linear()
    labels = inner((PIXELS / 255 - 0.5) / 0.25).argmax(1)
    result = quickly(robustly.wrap(inner, mean=[0.5] * 3, std=[0.25] * 3), (PIXELS, labels))
    assert result.summary.metrics.clean.share == 1


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"pretrained_cfg": {"mean": (0.5,) * 3, "std": (0.25,) * 3}}, r"mean 0\.5, 0\.5, 0\.5 .*robustly\.wrap"),
        ({"config": SimpleNamespace(model_type="vit")}, "processor="),
    ],
)
def test_a_forgotten_normalisation_is_named(about, words):
    net = linear()
    for name, value in about.items():
        setattr(net, name, value)
    with pytest.warns(UserWarning, match=words):
        quickly(net, NAMED)
    quickly(robustly.wrap(net, mean=[0.0] * 3, std=[1.0] * 3), NAMED)


@pytest.mark.slow
def test_the_record_names_the_class_or_function():
    def scorer(x):
        return {"logits": NET(x)}

    assert quickly(scorer, NAMED).summary.model.name == "scorer"
    assert quickly(torch.compile(NET, backend="eager"), NAMED).summary.model.name == "Sequential"


def test_rounding_happens_only_when_asked_for():
    noisy = (PIXELS / 255 + 0.001).clamp(0, 1)
    with pytest.raises(ValueError, match="round_to_8_bits"):
        quickly(NET, (noisy, LABELS))
    assert robust(quickly(NET, (noisy, LABELS), round_to_8_bits=True)) == EXPECTED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threat": "linf"}, "KIND:SIZE"),
        ({"threat": "linf:-1"}, "at least 0"),
        ({"suite": "pdg"}, "did you mean"),
        ({"suite": "rotation:3"}, "unknown suite or attack"),
        ({"data": 3}, "type int"),
        ({"model": "resnet18"}, "torch.nn.Module or a function"),
        ({"device": "meta"}, "not on meta"),
        ({"count": 0}, "at least 1"),
    ],
)
def test_bad_input_is_met_with_one_sentence(arguments, words):
    given = {"model": NET, "data": NAMED, "threat": THREAT, "suite": ATTACK, **arguments}
    with pytest.raises(ValueError, match=words) as caught:
        quickly(**given)
    assert "\n" not in str(caught.value)


def test_a_curve_has_the_given_radii():
    result = robustly.curve(NET, NAMED, "linf:2/255", [1 / 255, "3/255", 0.0], ATTACK)
    drawn = result.summary.metrics.security_curve
    points = {
        round(255 * size, 6): round(24 * share) for size, share in zip(drawn.epsilon, drawn.accuracy, strict=True)
    }
    assert points[0.0] == 24
    assert points[1.0] == EXPECTED
    assert points[3.0] <= points[1.0]


def test_a_killed_evaluation_continues_from_its_folder(tmp_path, monkeypatch):
    calls = []
    suite = Suite("two", {"first": ATTACK, "second": PGD(steps=4)})

    def stop(name, done, total):
        calls.append(name)
        if name == "second":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickly(NET, NAMED, suite=suite, checkpoint=tmp_path / "parts", progress=stop)
    calls.clear()
    result = quickly(NET, NAMED, suite=suite, checkpoint=tmp_path / "parts", progress=lambda *_: calls.append(_[0]))
    assert set(calls) == {"second"}
    assert robust(result) == robust(quickly(NET, NAMED, suite=suite))


@pytest.mark.slow
def test_diagnostics_take_the_same_input():
    found = {one.id: one for one in robustly.diagnose(lambda x: NET(x).softmax(1), (PIXELS, LABELS), "linf:1/255")}
    assert found["softmax_output"].passed is False


def test_evaluation_error_is_a_value_error():
    assert issubclass(EvaluationError, ValueError)


def test_a_suite_of_several_threats_names_the_one_that_it_is_evaluated_under():
    with pytest.warns(UserWarning, match="its evaluation under linf:8/255 alone"):
        result = robustly.evaluate(NET, NAMED, suite="tafd_v10", batch_size=24, count=2, progress=False)
    assert result.summary.threat.text == "linf:8/255"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = robustly.evaluate(NET, NAMED, "ace:2", "tafd_v10", batch_size=24, count=2, progress=False)
    assert [attack.title for attack in result.summary.suite.attacks] == ["ACE"]
    assert result.audit().passed
