"""Observers for the loops of others, by the names of their hooks: neither library is imported, or needed.

Trainer(model, args, ..., callbacks=[ps.TrainerObserver(probe, every=100, out="observations.jsonl")])
lightning.Trainer(callbacks=[ps.LightningObserver(probe, every=100)])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pathsum.observe.observer import Observer


class Callback:
    """What both have in common: the observer is made when training begins, and a hook that is not needed does nothing.

    `model` is what to observe of the model that the loop trains: by default all of it. The observer is `.observer`.
    """

    def __init__(self, probe: Any, *, model: Callable[[nn.Module], nn.Module] | None = None, **options: Any) -> None:
        self.probe, self.part, self.options = probe, model, options
        self.observer: Observer | None = None

    def begin(self, model: nn.Module, step: int) -> None:
        """Training begins, or goes on, at this step."""
        part = model if self.part is None else self.part(model)
        self.observer = Observer(part, self.probe, start=step, **self.options)

    def taken(self, step: int) -> None:
        """So many optimizer steps are taken."""
        if self.observer is not None and step > self.observer.taken:  # not between accumulated batches
            self.observer.at(step)

    def end(self) -> None:
        """Training is over."""
        if self.observer is not None:
            self.observer.finish()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return ignore
        raise AttributeError(f"{type(self).__name__} has no {name!r}")


class TrainerObserver(Callback):
    """A callback for transformers' `Trainer`; options as `Observer`'s, probe by keywords as the model takes them."""

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """The first observation."""
        self.begin(model, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an optimizer step."""
        self.taken(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last observation."""
        self.end()


class LightningObserver(Callback):
    """A callback for Lightning's `Trainer`; options as `Observer`'s."""

    state_key = _legacy_state_key = "pathsum.LightningObserver"

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Nothing yet: weights may still be loaded."""

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Nothing to free."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing for the checkpoint: where to go on is the loop's own number of steps."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take up."""

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """The first observation; a checkpoint is loaded by now."""
        self.begin(pl_module, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a batch, which has taken a step or not."""
        self.taken(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """The last observation."""
        self.end()


def ignore(*args: Any, **kwargs: Any) -> None:
    """A hook that is not needed."""
