"""Stream mode: the scoring core between two Pulsar topics."""
