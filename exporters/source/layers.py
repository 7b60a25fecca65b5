"""From a ``torch.nn`` layer back to the call that makes it: ``nn.Conv2d(3, 16, 3, padding=1, bias=False)``.

The arguments are read from the layer's attributes by the names in its constructor's signature; tables hold
what is not an attribute of the same name. The call is proved by making the layer on the meta device and
comparing the shapes of its ``state_dict``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from exporters.source.template import Argument, Call, Hole
from morphir.errors import ExportError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_SIZES = {"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"}
_SKIPPED = {"device", "dtype"}
_VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
_REQUIRED = inspect.Parameter.empty

_RNN: dict[str, object] = {
    "input_size": _REQUIRED,
    "hidden_size": _REQUIRED,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}
_SIGNATURES: Mapping[type[nn.Module], Mapping[str, object]] = {
    nn.Identity: {},
    nn.LSTM: {**_RNN, "proj_size": 0},
    nn.GRU: _RNN,
    nn.RNN: {**_RNN, "nonlinearity": "tanh"},
}


def _attention(module: Any) -> dict[str, object]:
    return {
        "bias": module.in_proj_bias is not None,
        "add_bias_kv": module.bias_k is not None,
        "kdim": None if module.kdim == module.embed_dim else module.kdim,
        "vdim": None if module.vdim == module.embed_dim else module.vdim,
    }


def _pool_stride(module: Any) -> dict[str, object]:
    return {"stride": None} if module.stride == module.kernel_size else {}


_READERS: Mapping[type[nn.Module], Callable[[Any], dict[str, object]]] = {
    nn.MultiheadAttention: _attention,
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _pool_stride),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _pool_stride),
    **dict.fromkeys((nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d), _pool_stride),
    **dict.fromkeys((nn.LPPool1d, nn.LPPool2d), _pool_stride),
}


def is_layer(module: nn.Module) -> bool:
    """Whether the module is one of ``torch.nn``'s own layers."""
    kind = type(module)
    return kind is not nn.Module and kind not in _CONTAINERS and getattr(nn, kind.__name__, None) is kind


def construction(module: nn.Module, path: str) -> Call:
    """Returns the call that makes a layer like ``module``, with every option that it has.

    Raises:
        ExportError: if an option cannot be read back, or parameters have other shapes than the options say.
    """
    values = _values(module, path)
    _check_shapes(module, path, {name: value for name, (value, _) in values.items()})
    arguments = tuple(
        Argument((Hole(value, name),))
        if default is _REQUIRED
        else Argument((Hole(value, name),), name, Hole(default))
        for name, (value, default) in values.items()
    )
    return Call((f"nn.{type(module).__name__}",), arguments)


def _values(module: nn.Module, path: str) -> dict[str, tuple[object, object]]:
    read = _READERS[type(module)](module) if type(module) in _READERS else {}
    found: dict[str, tuple[object, object]] = {}
    for name, default in _signature(type(module)).items():
        if name in read:
            value = read[name]
        elif hasattr(module, name):
            value = getattr(module, name)
        elif default is _REQUIRED:
            raise ExportError(
                f"cannot read back the option {name!r} of the {type(module).__name__} at {path!r}",
                hint="build the model from layers that keep their options as attributes",
            )
        else:
            continue
        found[name] = (_plain(name, value), default)
    return found


def _signature(kind: type[nn.Module]) -> Mapping[str, object]:
    if kind in _SIGNATURES:
        return _SIGNATURES[kind]
    parameters = inspect.signature(kind).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.name not in _SKIPPED and not p.name.startswith("_") and p.kind not in _VARIADIC
    }


def _plain(name: str, value: object) -> object:
    if name == "bias" and not isinstance(value, bool):
        return value is not None
    if not isinstance(value, tuple):
        return value
    items = list(cast("tuple[object, ...]", value))
    uniform = name in _SIZES and bool(items) and all(item == items[0] for item in items)
    return items[0] if uniform or (name == "normalized_shape" and len(items) == 1) else tuple(items)


def _check_shapes(module: nn.Module, path: str, values: dict[str, object]) -> None:
    try:
        with torch.device("meta"):
            rebuilt = type(module)(**cast("dict[str, Any]", values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ExportError(f"cannot rebuild the {type(module).__name__} at {path!r}: {error}") from error
    made, real = (
        {key: tuple(tensor.shape) for key, tensor in layer.state_dict().items()}
        for layer in (rebuilt, module)
    )
    if made != real:
        wrong = [key for key in sorted({*made, *real}) if made.get(key) != real.get(key)]
        raise ExportError(
            f"the options of the {type(module).__name__} at {path!r} do not fit its parameters: "
            + ", ".join(f"{key} is {real.get(key)}, the options say {made.get(key)}" for key in wrong)
        )
