import copy
import warnings
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustly import PGD, ImageData, ThreatModel, evaluate
from robustly.attacks import Square
from robustly.models import AdapterError, as_classifier, hidden_modules, names_of_outputs, weights_hash, wrap
from robustly.models.adapted import Adapted
from robustly.models.layout import in_fastest_layout
from robustly.models.outputs import OutputError, logits_in
from robustly.randomness import KeyedGenerator

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def linear(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, classes))


def logits(model: nn.Module) -> Tensor:
    return as_classifier(model, IMAGES[:2]).eval()(IMAGES)


@dataclass
class Output:
    logits: Tensor
    hidden_states: Tensor


class Around(nn.Module):
    """A network whose output, input or members are changed by a function."""

    def __init__(self, forward, net: nn.Module) -> None:
        super().__init__()
        self.net, self.change = net, forward

    def forward(self, x):
        return self.change(self.net, x)


class InList(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.parts = [net, {"head": (nn.BatchNorm1d(4),)}]

    def forward(self, x):
        return self.parts[1]["head"][0](self.parts[0](x))


def reentrant(net: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(net, x, use_reentrant=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x: Output(net(x), x),
        lambda net, x: {"logits": net(x), "features": x},
        lambda net, x: {"anything": net(x)},
        lambda net, x: (net(x), x),
        lambda net, x: [SimpleNamespace(logits=net(x)), x],
    ],
    ids=["dataclass", "dict", "dict with one tensor", "tuple", "list of objects"],
)
def test_logits_are_found_in_other_outputs(change):
    net = linear().eval()
    assert torch.equal(logits(Around(change, net)), net(IMAGES))


@pytest.mark.parametrize("output", [None, 3.0, (), {}, {"a": torch.ones(1), "b": torch.ones(1)}, "text"])
def test_an_output_without_logits_is_refused_by_its_type(output):
    with pytest.raises(OutputError, match=type(output).__name__):
        logits_in(output)
    with pytest.raises(AdapterError, match="tensor of logits"):
        as_classifier(Around(lambda net, x: output, linear()), IMAGES)


def test_an_ordinary_module_is_returned_itself_in_its_modes():
    net = linear().train()
    net[1].eval()
    assert as_classifier(net, IMAGES) is net
    assert net.training
    assert not net[1].training
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("shape", [lambda z: z, lambda z: z[:, 0]])
@pytest.mark.slow
def test_one_logit_becomes_two_classes(shape):
    net = linear(1)
    found = logits(Around(lambda net, x: shape(net(x)), net))
    torch.testing.assert_close(found.softmax(1)[:, 1], net.eval()(IMAGES)[:, 0].sigmoid())


def test_a_function_uses_modes_and_weights_of_its_networks():
    first, second = linear().train(), linear().train()
    offset = 1.0

    def both(x, scale=2.0):
        return scale * (first(x) + second(x)) + offset

    model = as_classifier(both, IMAGES)
    assert len(list(model.parameters())) == 4
    assert torch.equal(model.eval()(IMAGES), model(IMAGES))  # no dropout
    before = weights_hash(model)
    with torch.no_grad():
        second[2].bias += 1
    assert weights_hash(model) != before
    for other in (partial(both, scale=1.0), first.forward, SimpleNamespace(run=first, run_it=both).run_it):
        assert len(list(as_classifier(other).parameters())) >= 2


stranger = nn.Linear(2, 2)


def test_an_attribute_with_the_name_of_a_global_network_is_not_that_network():
    holder = SimpleNamespace(stranger=linear())
    model = as_classifier(lambda x: holder.stranger(x) + 1, IMAGES)
    assert [tuple(value.shape) for value in model.parameters()] == [(4, 192), (4,)]

    def outer(x):
        def inner(z):
            return stranger(z.flatten(1)[:, :2])

        return inner(x)

    inner = as_classifier(outer, IMAGES)
    assert [tuple(value.shape) for value in inner.parameters()] == [(2, 2), (2,)]


def test_a_function_without_a_network_is_named_as_such():
    with pytest.warns(UserWarning, match="no torch.nn.Module was found"):
        model = as_classifier(lambda x: x.flatten(1)[:, :3])
    assert model(IMAGES).shape == (6, 3)
    with pytest.raises(AdapterError, match="got int"):
        as_classifier(3)
    with pytest.raises(AdapterError, match="got Linear"):
        as_classifier(nn.Linear)


def test_networks_in_a_list_have_modes_and_weights():
    net = InList(linear()).train()
    assert set(hidden_modules(net)) == {"parts.0", "parts.1.head.0"}
    assert weights_hash(net) == weights_hash({})
    model = as_classifier(net, IMAGES)
    assert weights_hash(model) != weights_hash({})
    one = model.eval()(IMAGES[:1])
    torch.testing.assert_close(one, model(IMAGES)[:1])  # running statistics, not those of the batch
    twin = copy.deepcopy(model).double()
    assert twin(IMAGES.double()).dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.slow
def test_wrappers_are_removed_and_hashes_agree():
    net = linear()
    for other in (
        torch.compile(net, backend="eager"),
        nn.DataParallel(net),
        torch.optim.swa_utils.AveragedModel(net),
    ):
        assert weights_hash(as_classifier(other)) == weights_hash(net)
    assert weights_hash(Adapted(net, copies_input=True)) == weights_hash(net)


def test_a_state_is_loaded_under_its_own_names():
    model = wrap(InList(linear()), mean=[0.5] * 3, std=[0.2] * 3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert {"normalize.mean", "parts.0.2.weight"} <= set(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    nested = nn.Sequential(model)
    assert set(nested.state_dict()) == {f"0.{name}" for name in state}


def exported(net: nn.Module) -> nn.Module:
    batch = torch.export.Dim("batch")
    return torch.export.export(net.eval(), (IMAGES,), dynamic_shapes=({0: batch},)).module()


class WithBackbone(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.drop = backbone, nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.backbone(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "deployed",
    [
        exported,
        lambda net: torch.jit.freeze(torch.jit.script(net.eval())),
        torch.jit.script,
        lambda net: WithBackbone(exported(net)),
    ],
    ids=["torch.export", "torch.jit.freeze", "torch.jit.script", "part of a module"],
)
def test_deployed_programs_are_evaluated(deployed):
    net, threat = linear(), ThreatModel("linf", "2/255")
    labels = net.eval()(IMAGES).argmax(1)
    plain = PGD(steps=3)(net, IMAGES, labels, threat=threat, generator=KeyedGenerator(0, torch.arange(6)))
    model = as_classifier(deployed(net), IMAGES)
    found = PGD(steps=3)(model, IMAGES, labels, threat=threat, generator=KeyedGenerator(0, torch.arange(6)))
    torch.testing.assert_close(found.x_adv, plain.x_adv)


@pytest.mark.parametrize("attack", [PGD(steps=5), Square(queries=40)])
@pytest.mark.parametrize(
    "change", [lambda net, x: net(x.sub_(0.5).div_(0.25)), reentrant], ids=["in place", "reentrant"]
)
def test_networks_with_side_effects_on_their_input_get_right_verdicts(change, attack):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    plain = (lambda x: net((x - 0.5) / 0.25)) if change is not reentrant else net
    labels, threat = plain(IMAGES).argmax(1), ThreatModel("linf", "2/255")
    model = as_classifier(Around(change, net), IMAGES)
    given = IMAGES.clone()
    found = attack(model, given, labels, threat=threat, generator=KeyedGenerator(0, torch.arange(6)))
    expected = attack(
        Around(lambda _, x: plain(x), net),
        IMAGES,
        labels,
        threat=threat,
        generator=KeyedGenerator(0, torch.arange(6)),
    )
    assert torch.equal(given, IMAGES)
    assert threat.contains(found.x_adv, IMAGES).all()
    torch.testing.assert_close(found.x_adv, expected.x_adv)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_types_are_attacked_in_their_own(dtype):
    net = linear().to(dtype).eval()
    labels = net(IMAGES.to(dtype)).argmax(1)
    threat = ThreatModel("linf", "8/255")
    found = PGD(steps=3)(net, IMAGES, labels, threat=threat, generator=KeyedGenerator(0, torch.arange(6)))
    assert found.x_adv.dtype == torch.float32
    assert torch.equal(net(found.x_adv.to(dtype)).argmax(1) != labels, found.broken)


def test_values_just_above_one_are_clipped_and_others_refused():
    net, threat = linear(), ThreatModel("linf", 0.1)
    x = IMAGES.clone()
    x[0, 0, 0, 0] = 1 + 2**-23
    run = partial(
        PGD(steps=2), net, y=torch.arange(6) % 4, threat=threat, generator=KeyedGenerator(0, torch.arange(6))
    )
    assert float(run(x).x_adv.max()) <= 1
    x[0, 0, 0, 0] = 1.001
    with pytest.raises(ValueError, match=r"1\.001"):
        run(x)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="nan"):
        run(x)


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 4)

    def forward(self, x):
        return self.out(self.conv(x).view(len(x), -1))


def test_the_layout_falls_back_for_networks_that_flatten_with_view():
    torch.manual_seed(0)
    net = in_fastest_layout(Views(), IMAGES)
    assert net.training
    assert net.conv.weight.is_contiguous()
    other = in_fastest_layout(nn.Conv2d(3, 4, 3), IMAGES)
    assert other.weight.is_contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a search in full precision would be announced
        PGD(steps=2, precision="bfloat16")(
            net,
            IMAGES,
            torch.arange(6) % 4,
            threat=ThreatModel("linf", 0.1),
            generator=KeyedGenerator(0, torch.arange(6)),
        )


PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True, "rescale_factor": 1 / 255}


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": [0.5] * 3, "std": [0.25] * 3},
        {"processor": PROCESSOR},
        {"processor": SimpleNamespace(**PROCESSOR)},
        {"processor": SimpleNamespace(image_processor=SimpleNamespace(**PROCESSOR))},
    ],
)
def test_wrap_normalises_first(settings):
    net = linear().eval()
    torch.testing.assert_close(wrap(net, **settings)(IMAGES), net((IMAGES - 0.5) / 0.25))


def test_wrap_reads_the_configuration_of_timm_and_names():
    net = linear().eval()
    net.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    torch.testing.assert_close(wrap(torch.compile(net, backend="eager"))(IMAGES), net((IMAGES - 0.5) / 0.25))
    net.config = SimpleNamespace(id2label={1: "b", 0: "a"})
    assert names_of_outputs(wrap(net)) == ("a", "b")
    net.config = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})
    assert names_of_outputs(net) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": [0.5]}, "together"),
        ({"mean": [0.5], "std": [1], "processor": PROCESSOR}, "not both"),
        ({"processor": object()}, "image_mean"),
        ({"processor": {**PROCESSOR, "rescale_factor": 1 / 127.5}}, "1/255"),
        ({"mean": [0.5], "std": [0.0]}, "positive"),
    ],
)
def test_wrap_refuses_what_is_no_normalisation(settings, words):
    with pytest.raises(ValueError, match=words):
        wrap(linear(), **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_unusual_models_have_the_verdicts_of_the_plain_one():
    net = linear()
    pixels = (IMAGES * 255).byte()
    labels = net.eval()(pixels / 255).argmax(1)
    data = ImageData(pixels, labels, torch.arange(6), tuple("abcd"), "memory")

    def robust(model):
        return evaluate(model, data, ThreatModel("linf", "1/255"), "quick", batch_size=6).summary["worst_case"][
            "robust"
        ]

    expected = robust(net)
    assert 0 < expected < 6
    for model in (
        Around(lambda net, x: {"logits": net(x)}, net),
        Around(lambda net, x: net(x.mul_(1.0)), net),
        Around(reentrant, net),
        net.forward,
        torch.compile(net, backend="eager"),
        copy.deepcopy(net).double(),
        exported(copy.deepcopy(net)),
    ):
        assert robust(model) == expected
