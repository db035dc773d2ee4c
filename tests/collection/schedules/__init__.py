"""A world in which a schedule of what can go wrong is played, and an oracle that watches it.

- A run sees the feed as it was when it began to read; what is published meanwhile is for the next.
- *Due* is a version that became visible no further back than the overlap: the sink must have it
  once a run that began after it was visible promises to be durable up to its time, and at the end.
  What an operator went back for is due again. What nobody can know is not due: a version that no
  feed shows any more when a sink was lost, or what a source hid behind an order that it declared,
  broke, and was not caught breaking before the run was killed.
- *Current* is the version that the feed shows of a record: the sink must show it once a run that
  nobody disturbed was shown it, and at the end, whatever came before and at what time.
- A worker's clock may be wrong by days. The storage's never is, nor is the feed's: who holds the
  source, and for how long, is only a matter of the storage's. A feed that tells no time is read up
  to the worker's now. So records from the future may be taken for past ones, and what comes too far
  behind them is not due.
- A killed run says nothing more, to nobody: neither the storage nor the sink hears of it again.
"""
