"""Published networks, input normalisation as a layer, and loading of weights from any source."""

from robustly.models.adapter import AdapterError, as_classifier
from robustly.models.hidden import hidden_modules
from robustly.models.layers import ACTIVATIONS, Normalize
from robustly.models.registry import MODELS, Architecture, ModelConfig, Settings, build_model
from robustly.models.resnet import PreActResNet, ResNet
from robustly.models.small_cnn import SmallCNN
from robustly.models.weights import WeightsError, load_weights, read_weights, save_weights, weights_hash
from robustly.models.wide_resnet import WideResNet
from robustly.models.wrapping import names_of_outputs, wrap

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "AdapterError",
    "Architecture",
    "ModelConfig",
    "Normalize",
    "PreActResNet",
    "ResNet",
    "Settings",
    "SmallCNN",
    "WeightsError",
    "WideResNet",
    "as_classifier",
    "build_model",
    "hidden_modules",
    "load_weights",
    "names_of_outputs",
    "read_weights",
    "save_weights",
    "weights_hash",
    "wrap",
]
