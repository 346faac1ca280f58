"""Published networks, input normalisation as a layer, and loading of weights from any source."""

from robustly.models.checkpoints import WeightsError, read_weights
from robustly.models.layers import ACTIVATIONS, Normalize
from robustly.models.registry import MODELS, Architecture, ModelConfig, Settings, build_model
from robustly.models.resnet import PreActResNet, ResNet
from robustly.models.small_cnn import SmallCNN
from robustly.models.weights import load_weights, save_weights, weights_hash
from robustly.models.wide_resnet import WideResNet

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "Architecture",
    "ModelConfig",
    "Normalize",
    "PreActResNet",
    "ResNet",
    "Settings",
    "SmallCNN",
    "WeightsError",
    "WideResNet",
    "build_model",
    "load_weights",
    "read_weights",
    "save_weights",
    "weights_hash",
]
