"""Which features of a Keras model are a flattened array: PyTorch flattens it in another order."""

from typing import Any


def flattened_in(tensor: Any, within: dict[int, Any]) -> tuple[int, ...] | None:
    """Give the shape, channels last and without the batch, that was flattened to make a tensor.

    Args:
        tensor: The symbolic output of a Keras layer; a list of several was never flattened.
        within: What `inputs_within` gives for the model.

    Returns:
        The shape, or None where nothing was flattened or the order is PyTorch's.
    """
    if isinstance(tensor, list) or len(tensor.shape) != 2:
        return None
    flattening, read = _origin(tensor, within)
    if type(flattening).__name__ not in ("Flatten", "Reshape"):
        return None
    shape = tuple(read[0].shape[1:])
    source, _ = _origin(read[0], within)
    if type(source).__name__ == "InputLayer":
        # An image without an axis of channels, or with it first, is flattened as PyTorch does it.
        return None if len(shape) < 3 or _is_image_with_channels_first(shape) else shape
    # Such a permutation puts channels first, the order that PyTorch flattens.
    first = type(source).__name__ == "Permute" and source.dims[0] == len(shape)
    return None if first or len(shape) < 2 else shape


def inputs_within(model: Any) -> dict[int, Any]:
    """Give, for the inputs of the models within a model, what they are given there.

    Returns:
        By the id of a symbolic input of the inner model, the outer model's tensor.
    """
    found: dict[int, Any] = {}
    for inner in model.layers:
        if hasattr(inner, "layers"):
            given = inner._inbound_nodes[-1].input_tensors
            found |= {id(ours): theirs for ours, theirs in zip(inner.inputs, given, strict=True)}
            found |= inputs_within(inner)
    return found


def _is_image_with_channels_first(shape: tuple[int, ...]) -> bool:
    """Tell a grey or coloured square image from an array of features with channels last."""
    return shape[0] in (1, 3) and shape[0] < shape[1] == shape[2]


def _origin(tensor: Any, within: dict[int, Any]) -> tuple[Any, list[Any]]:
    """Give the last operation that moved or mixed a tensor's features, and what it read."""
    while True:
        operation, node, index = tensor._keras_history
        read = operation._inbound_nodes[node].input_tensors
        if hasattr(operation, "layers"):
            tensor = operation.outputs[index]
        elif id(tensor) in within:
            tensor = within[id(tensor)]
        elif (
            type(operation).__name__ in ("InputLayer", "Permute")
            or any(tuple(other.shape) != tuple(tensor.shape) for other in read)
            or (getattr(operation, "weights", []) and "Normalization" not in str(type(operation)))
        ):
            return operation, read
        else:
            tensor = read[0]
