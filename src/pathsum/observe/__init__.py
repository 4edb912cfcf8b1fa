"""Observers: what a network is, recorded while it trains, on a fixed probe set; training itself stays as it was."""

from pathsum.observe.callbacks import LightningObserver, TrainerObserver
from pathsum.observe.measures import MEASURES, Instruments, Measure
from pathsum.observe.observer import Observer
from pathsum.observe.probe import Probe

__all__ = ["MEASURES", "Instruments", "LightningObserver", "Measure", "Observer", "Probe", "TrainerObserver"]
