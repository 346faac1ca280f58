"""Published networks, input normalisation as a layer, and loading of weights from any source."""

from robustly.models.adapter import AdapterError, as_classifier
from robustly.models.checkpoints import WeightsError, is_torchscript, read_weights, weights_file
from robustly.models.conv_small import ConvSmall
from robustly.models.frequency import FrequencyConv2d, Route
from robustly.models.hidden import hidden_modules
from robustly.models.layers import ACTIVATIONS, Normalize
from robustly.models.parameter_matching import matched_width, parameter_count
from robustly.models.published import Expected, PublishedError, expected_images
from robustly.models.recognition import about_model, recognised
from robustly.models.registry import MODELS, Architecture, ModelConfig, Settings, build_model
from robustly.models.resnet import PreActResNet, ResNet
from robustly.models.small_cnn import SmallCNN
from robustly.models.tafd import ForcedRoute, TafdNetwork, forced, tafd_resnet18, tafd_small_cnn
from robustly.models.weights import has_weights, load_weights, save_weights, weights_hash
from robustly.models.wide_resnet import WideResNet
from robustly.models.wrapping import names_of_outputs, wrap

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "AdapterError",
    "Architecture",
    "ConvSmall",
    "Expected",
    "ForcedRoute",
    "FrequencyConv2d",
    "ModelConfig",
    "Normalize",
    "PreActResNet",
    "PublishedError",
    "ResNet",
    "Route",
    "Settings",
    "SmallCNN",
    "TafdNetwork",
    "WeightsError",
    "WideResNet",
    "about_model",
    "as_classifier",
    "build_model",
    "expected_images",
    "forced",
    "has_weights",
    "hidden_modules",
    "is_torchscript",
    "load_weights",
    "matched_width",
    "names_of_outputs",
    "parameter_count",
    "read_weights",
    "recognised",
    "save_weights",
    "tafd_resnet18",
    "tafd_small_cnn",
    "weights_file",
    "weights_hash",
    "wrap",
]
