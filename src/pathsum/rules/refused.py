"""What no rule can do: functions that draw random numbers, and questions for a number where a series has many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import MissingRuleError, ModeError
from ..series import name_of
from . import rule


@rule("gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d", "bernoulli", "multinomial", "poisson")
@rule("fractional_max_pool2d_with_indices", "fractional_max_pool3d_with_indices", "normal", "native_dropout")
def random(func: Callable[..., Any], args: tuple, kwargs: dict) -> NoReturn:
    raise ModeError(
        f"{name_of(func)} draws random numbers on each call, so there is no fixed function to expand: "
        "replace it by what the model does in evaluation"
    )


@rule("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__")
@rule("is_nonzero", "equal", "allclose", "__contains__", "data_ptr", "untyped_storage", "storage")
def one_value(func: Callable[..., Any], args: tuple, kwargs: dict) -> NoReturn:
    raise MissingRuleError(
        f"no series rule for {name_of(func)}: it reads numbers out of a tensor that depends on λ, and a series has one "
        "for every order; keep it a tensor (torch.where instead of if), or take the number from something that does "
        "not depend on λ"
    )
