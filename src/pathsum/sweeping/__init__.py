"""The parts of `pathsum.store` and `pathsum.sweep`: what a run is, leases, workers, their supervisor, the display."""
