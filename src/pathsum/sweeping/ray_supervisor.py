"""The supervisor of a sweep on a Ray cluster: that of one machine, whose number of workers follows the cluster."""

from __future__ import annotations

import time

from pathsum.errors import PathsumError
from pathsum.sweeping.crew import Hand
from pathsum.sweeping.ray_crew import RayCrew, Slot
from pathsum.sweeping.supervisor import Supervisor

BARREN = 300.0  # seconds for which no node may have room for a task, before that is an error


class ClusterSupervisor(Supervisor):
    """One sweep at work on a cluster."""

    crew: RayCrew
    barren = 0.0  # since when no node has room; 0: one has

    def survey(self) -> None:
        """Look at the cluster too."""
        super().survey()
        room = self.crew.slots()
        self.workers = self.display.workers = max(room, 1)
        now = time.monotonic()
        self.barren = 0.0 if room else self.barren or now
        if self.left and not room and now - self.barren > BARREN:
            from pathsum.sweeping.ray_engine import alive

            lacking = self.crew.request.missing([node["Resources"] for node in alive()])
            raise PathsumError(f"{lacking}; for {BARREN:.0f} s no run could go on (the same command continues)")

    def lost(self, member: Hand) -> None:
        """A task has ended without a word: say so."""
        assert isinstance(member, Slot)
        self.crew.dismiss(member)
        self.next_survey = 0.0
        for config in member.order:
            if config.folder in self.left:
                self.display.setback(config, "lost", member.reason)
