"""What `make up` starts, whole: servers, schedules, workers and their end, with `make up-test`."""
