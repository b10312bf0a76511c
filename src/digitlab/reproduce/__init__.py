"""`digitlab reproduce`: configs trained over seeds, and compared.

| module | content |
|---|---|
| `command` | the command line, and `--report` |
| `rows` | the rows: a config each, with its published figure |
| `executors` | many runs at a time, by worker processes |
| `worker` | a run in a worker process |
| `results` | the CSV file of the runs' results |
| `statistics` | intervals, two one-sided tests, and many tests at once |
| `tables`, `figures` | tables and figures of `--report` |
"""
