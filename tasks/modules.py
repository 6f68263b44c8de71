"""What a torch module is made of: the parameters that are trained, and what belongs to the model beside them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tasks.contract import TaskError
from tasks.samples import as_array


def completed(module: nn.Module, inputs: Tensor | None, dtype: str) -> nn.Module:
    """Return a module whose parameters all have shapes: lazy layers get theirs from one forward pass.

    Args:
        module: as the task made it; under the seed that it was made under, as lazy layers draw only now.
        inputs: of one sample, prepared; None where there is none.
        dtype: of the model.

    Raises:
        TaskError: there are lazy layers, and no sample.
    """
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        if inputs is None:
            fix = "give their sizes, or give the server test data"
            raise TaskError(f"the model has lazy layers, which the server cannot complete without a sample; {fix}")
        module = module.to(getattr(torch, dtype))
        modes = {layer: layer.training for layer in module.modules()}
        with torch.no_grad():  # and in evaluation mode: batch norm takes one sample only there, and keeps nothing of it
            module.eval()(inputs)
        for layer, mode in modes.items():
            layer.training = mode
    return module


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained by name, in the order in which they lie in the vector x; tied ones once.

    Raises:
        TaskError: there are none, or they are no real numbers on the CPU.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_complex():
            fix = "must be real: keep real and imaginary part as two parameters (torch.view_as_real)"
            raise TaskError(f'the model\'s parameter "{name}" is of {parameter.dtype}; {fix}')
        if (device := parameter.device).type != "cpu":
            raise TaskError(f'the model\'s parameter "{name}" is on the device "{device}"; must be on the CPU')
    found = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not found:
        raise TaskError("the model has no parameters to train")
    return found


def tied(module: nn.Module) -> dict[str, str]:
    """Return the further names under which a state dict has trained parameters: name -> the name in ``trained``."""
    names = {id(parameter): name for name, parameter in module.named_parameters() if parameter.requires_grad}
    found = {name: names.get(id(tensor), name) for name, tensor in module.state_dict(keep_vars=True).items()}
    return {name: first for name, first in found.items() if name != first}


def untrained(module: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Return copies of the frozen parameters and the buffers by name, those that a state dict has."""
    learnt = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    return {
        name: as_array(tensor).copy()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and id(tensor) not in learnt
    }
