"""A data set with as many classes as a model has outputs."""

from robustly.data.class_names import are_numbers
from robustly.data.images import ImageData

_HOW = (
    "name all classes in the order of the outputs: --data.classes FILE on the command line, with one name per line "
    "or JSON such as imagenet_class_index.json or the config.json of Hugging Face; classes= in Python"
)


def fitted_to(data: ImageData, outputs: int) -> ImageData:
    """The data set with as many classes as a model has outputs.

    Args:
        data: labelled images.
        outputs: number of the model's outputs, that is, of logits per image.

    Returns:
        The same data; if its fewer classes are only numbers, with classes without examples added.

    Raises:
        ValueError: there are more classes than outputs, or fewer classes that have names, so that the output of
            each is unknown.
    """
    if outputs == data.num_classes:
        return data
    if outputs < data.num_classes:
        from_one = are_numbers(data.classes) and outputs == data.num_classes - 1 and int(data.labels.min()) == 1
        remedy = (
            "subtract 1 from labels that begin at 1" if from_one else "choose the data that the model was made for"
        )
        raise ValueError(
            f"{data.source}: has {data.num_classes} classes but the model has {outputs} "
            f"{'output' if outputs == 1 else 'outputs'}: {remedy}"
        )
    if are_numbers(data.classes):
        return data.widened(outputs)
    raise ValueError(f"{_few_classes(data)} but the model has {outputs} outputs: {_HOW}")


def _few_classes(data: ImageData) -> str:
    listed = ", ".join(data.classes[:3]) + (", ..." if data.num_classes > 3 else "")
    noun = "class" if data.num_classes == 1 else "classes"
    return f"{data.source}: has {data.num_classes} {noun} ({listed})"
