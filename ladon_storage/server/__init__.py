"""The embedded Storage Service: LADON's contract, and additions, over one SQLite file.

::

    migrations/    the schema, as numbered SQL
    database.py    the file: opened, migrated, and written to in groups
    rows.py        rows as models, and models as rows
    store.py       watermarks and their history: SQL, no HTTP
    requests.py    the checks of requests: a refusal has the field and the reason
    responses.py   JSON, and every error in one shape
    metrics.py     the instruments of the service; the package's metrics.py has the client's
    openapi.py     the description of every route, from the models
    app.py         routes: no SQL
    serving.py     the service as a whole: started, answering, ended

It knows neither the client nor the circuit. ``models.apply_update`` has the rules of a write.
"""
