"""A sample feed that misbehaves as real ones do, collected through an outage, with nothing lost."""
