"""The embedded Storage Service: LADON's contract, and additions, over one SQLite file.

::

    migrations/    the schema, as numbered SQL
    database.py    the file: opening, migrating, and committing in groups
    store.py       watermarks and their history: SQL, no HTTP
    requests.py    what a request may say: checked here, or refused with the field and the reason
    openapi.py     the description of every route, from the models
    app.py         routes: no SQL
    serving.py     the service as a whole: started, answering, ended

It knows neither the client nor the circuit. The rules of a write are those of ``models.updated``.
"""
