"""A judge of collectors: schedules of a feed's habits, faults and crashes, and an oracle."""
