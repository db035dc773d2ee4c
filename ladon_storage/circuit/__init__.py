"""The circuit breaker, alone in a process or shared by many."""
