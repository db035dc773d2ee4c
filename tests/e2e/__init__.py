"""The collection as a person meets it: in a browser, in Prefect's UI."""
