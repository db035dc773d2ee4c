"""Resume collections exactly where durable data ends: a Prefect 3 integration of LADON's Storage Service."""
