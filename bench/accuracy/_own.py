"""A method from outside: named by its class, it is tuned, run and shown like any other."""

import importlib
import inspect
from typing import Any

import balanced_grad as bg
from balanced_grad.demo._data import DemoError
from balanced_grad.demo._model import LateFusion
from bench.accuracy import _objectives as objectives
from bench.accuracy._methods import BY_NAME, Method, both, encoders


def find(name: str) -> Method:
    """A method of the study, or that of a class ``package.module:Class``."""
    return BY_NAME[name] if name in BY_NAME else own_method(name)


def own_method(name: str) -> Method:
    """The method of a class, which is called with its settings; joint and uni-modal losses are what it is given.

    A ``bg.Modulation`` is called with the encoders first, a mapping by modality, and given the uni-modal heads'
    scores. Its attribute ``space``, setting -> values to draw from with the default first, is what is tuned beside
    learning rate and weight decay.

    Raises:
        DemoError: for a name that leads to no ``bg.Balancer``.
    """
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise DemoError(f"{name!r} is not package.module:Class, such as my_project.methods:MyMethod")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DemoError(f"{name!r}: cannot import {module_name} from here: {error}") from error
    made = getattr(module, class_name, None)
    if not (inspect.isclass(made) and issubclass(made, bg.Balancer)):
        raise DemoError(f"{name!r}: {module_name} has no class {class_name} that is a bg.Balancer")
    space = getattr(made, "space", {})
    if issubclass(made, bg.Modulation):

        def modulation(model: LateFusion, **settings: Any) -> bg.Balancer:
            return made(encoders(model), **settings)

        return Method(name, modulation, space, both(objectives.with_head_scores))
    return Method(name, lambda _, **settings: made(**settings), space)
