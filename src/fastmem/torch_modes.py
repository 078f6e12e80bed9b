"""The modes of torch around a call have no effect on it: `no_grad`, `inference_mode` and `autocast`.

Memorizing takes gradients, and in a type that the caller's autocast would choose it gives another memory.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def in_own_modes(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator: the function runs as if no mode were set.

    Of a generator function only the code between its yields does: modes belong to the thread, so that the caller would
    have one that is set during a yield.
    """
    if not inspect.isgeneratorfunction(function):
        return _own_modes()(function)

    @functools.wraps(function)
    def generator(*args: P.args, **kwargs: P.kwargs) -> Any:
        steps = function(*args, **kwargs)
        while True:
            with _own_modes():
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
            yield step

    return generator


@contextmanager
def _own_modes() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
