"""Overrides, YAML documents and words of a command line that commands refuse."""

from collections.abc import Iterator

NUMBERS = [
    "data.split_seed", "data.pad_crop", "data.extra_fraction", "optimizer.learning_rate",
    "optimizer.momentum", "optimizer.weight_decay", "schedule.peak", "schedule.floor", "schedule.warm_up",
    "training.epochs", "training.batch_size", "training.validation_batch_size", "training.validation_steps",
    "training.epsilon_ramp", "runtime.processes", "runtime.nodes", "evaluation.curve_count", "model.width", "seed",
    "method.inner.steps", "method.loss.beta", "method.parameters.ema.decay", "guide.width",
]  # fmt: skip
MAYBE_NUMBERS = [
    "data.validation", "data.test", "data.train_limit", "data.test_limit", "data.image_size", "data.channels",
    "model.classes", "model.channels", "model.image_size", "model.mean", "model.dropout", "optimizer.clip_norm",
    "training.patience", "training.stop_after_drop", "evaluation.count", "evaluation.batch_size",
]  # fmt: skip
CHOICES = [
    "data.subset", "optimizer.name", "schedule.name", "training.select_by", "training.epsilon_ramp_by",
    "runtime.device", "runtime.precision", "evaluation.mode", "evaluation.suite", "model.name", "model.activation",
    "method.labels", "method.inner", "method.loss", "method.weights", "method.inner.start", "threat", "data.source",
    "model.weights", "data.train_split", "data.test_split", "data.extra_source", "data.classes", "guide.name",
]  # fmt: skip
FLAGS = [
    "data.evaluation_only",
    "data.flip",
    "optimizer.nesterov",
    "optimizer.decay_norms",
    "training.channels_last",
]
SECTIONS = [
    "data",
    "model",
    "optimizer",
    "schedule",
    "training",
    "runtime",
    "evaluation",
    "method",
    "networks",
    "guide",
]
NO_NUMBERS = [
    "1e300", "-1e300", ".inf", "-.inf", ".nan", "nonsense", "[1, [2]]", "{a: 1}", "true", "9" * 30, "9" * 5000,
    "1/0", "2000-01-01", "\x1b[31mred", "a\0b", "&x [*x]", "[" * 500, "!!python/name:os.system", "{[1]: 2}", "",
]  # fmt: skip
NO_CHOICES = ["nonsense", "[1]", "{a: 1}", "1.5", "\x1b[2J", "a\0b", "&x [*x]", "!!set {a}", "x" * 5000, ""]


def overrides() -> Iterator[str]:
    for keys, values in (
        (NUMBERS, [*NO_NUMBERS, "null"]),
        (MAYBE_NUMBERS, NO_NUMBERS),
        (CHOICES, NO_CHOICES),
        (FLAGS, ["2", "nonsense", "null", "[true]", ".nan", "&x [*x]", ""]),
        (SECTIONS, ["1", "x", "[1]", "true", "&x {a: *x}", "{1: 2}"]),
    ):
        yield from (f"--{key}={value}" for key in keys for value in values)
    deep = ".".join(["a"] * 5000)
    yield from (
        f"--{key}=1" for key in (deep, "data.", ".x", "..", "training.epoch", "data.source.x", "model.\x1b[1m")
    )


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
DOCUMENTS = [
    b"", b"x", b"- 1", b"1", b"null", b"a: [", b"a: 1\n---\nb: 1", b"\xff\xfe", b"\0", b"a: \x1b[31m", b"{}: 1",
    b"? [1]\n: 2", b"1: 2", b"a: &x [*x]", b"a: &x {b: *x}", b"seed: 1\nseed: 2", b"seed: " + b"9" * 5000,
    b"seed: .nan", b"seed: 1.5", b"a: " + b"[" * 5000, b"a: !!python/object/apply:os.system ['true']",
    b"seed: *nothing", b"%YAML 9.9\n---\na: 1", b"a: !!binary \xc3\xa9", b"threat: [1]", b"threat: {}",
    b"threat: null",
    b"x" * 300_000, BOMB.encode(), b"method: 1", b"method: {loss: {name: [1]}}", b"method: {loss: {}}",
    b"networks: {a: 1}", b"networks: {'\\e[1m': {}}", b'networks: {"\\e[1m": {name: small_cnn}}', b"model: []",
    b"evaluation: {stages: {a: 1}, suite: mine}",
    b"evaluation: {stages: {a: {attack: pgd, steps: 1.0e+300}}, suite: m}",
    b'evaluation: {stages: {"\\e[2J": {attack: nothing}}, suite: mine}', b"evaluation: {stages: {}, suite: mine}",
    b"base: [1]", b"base: nothing", b"base: mnist5k/dynat\nrecipe: x", b"recipe: 5", b"data: {source: '\\0'}",
    b'data: {source: "\\0"}', b'data: {source: "\\ud800"}', b"<<: 1", b"<<: [1]", b"a: &b\n  <<: *b",
]  # fmt: skip
OPTIONS = [
    ["train"], ["train", "nothing/here"], ["train", "\x1b[31m"], ["train", "a\0b"], ["train", "none.yaml"],
    ["train", "a\0b.yaml"], ["train", "x" * 5000], ["train", "mnist5k/dynat", "--resume", "x"],
    ["train", "--resume", "a\0b"], ["train", "mnist5k/dynat", "--out", "/dev/null"],
    ["train", "mnist5k/dynat", "--out", "\ud800", "--training.epochs"], ["train", "--nothing"], ["nothing"], [],
    ["evaluate", "none"], ["evaluate", "\x1b[2J"], ["evaluate", "a\0b"], ["evaluate", "."],
    ["evaluate", "new", "--model.name", "small_cnn"], ["evaluate", "new", "--model.name", "a:b"],
    ["evaluate", "new", "--model.name", "small_cnn", "--model.weights", "/dev/zero"],
    ["evaluate", "new", "--model.name", "small_cnn", "--model.weights", "a\0b.pt"],
    ["evaluate", ".", "--as", "a b"], ["audit", "none"], ["audit", ".", "--rerun", "x"], ["audit", "a\0b"],
    ["audit", ".", "--rerun", "9" * 5000], ["diagnose", "none"], ["diagnose", ".", "--count", "x"],
    ["diagnose", ".", "--count", "0"], ["analyse", "none"], ["analyse", ".", "--count", "-1"], ["report", "none"],
    ["report", "."], ["report", "a\0b"], ["report", "\x1b[2J", "\x1b[2J"], ["report"], ["compare", "none"],
    ["compare", "."], ["compare", "a\0b"], ["compare", ".", "--by", "x"], ["compare"], ["suites", "nothing"],
    ["suites", "\x1b[2J"], ["suites", "quick", "linf"], ["suites", "quick", "linf:1e999"],
    ["suites", "quick", "linf:" + "9" * 5000], ["suites", "quick", "l0:1.5"], ["suites", "quick", "linf:1/0"],
    ["suites", "quick", "linf:0.1@/dev/zero"], ["suites", "quick", "linf:0.1@none.npy"],
    ["suites", "quick", "linf:0.1@a\0b"], ["suites", "quick", "rotation:999"], ["suites", "quick", "rotation:30+"],
    ["suites", "quick", "+".join(["linf:0.1"] * 2000)], ["recipes", "nothing"], ["recipes", "\x1b[2J"],
    ["recipes", "../../x"], ["sweep"], ["sweep", "nothing"], ["sweep", "mnist5k/dynat", "--seeds", "a"],
    ["sweep", "mnist5k/dynat", "--seeds", "-1"], ["sweep", "mnist5k/dynat", "--seeds", "9" * 5000],
    ["sweep", "mnist5k/dynat", "--over", "x"], ["sweep", "mnist5k/dynat", "--over", "x=1"],
    ["sweep", "mnist5k/dynat", "--over", "=1"], ["sweep", "mnist5k/dynat", "--over", "training.epochs="],
    ["sweep", "mnist5k/dynat", "--over", "training.epochs=1,\x1b[2J"], ["sweep", "mnist5k/dynat", "--workers", "0"],
    ["sweep", "mnist5k/dynat", "--workers", "x"], ["sweep", "mnist5k/dynat", "--threads", "0"],
    ["sweep", "mnist5k/dynat", "mnist5k/dynat"], ["sweep", "--resume", "none"], ["sweep", "a\0b.yaml"],
]  # fmt: skip
