"""`digitlab reproduce`: the documents' figures, measured over seeds in both frameworks.

| module | what |
|---|---|
| `options`, `command` | the command line |
| `rows` | the rows: a config each, and what was published of it |
| `queue` | trains rows, several runs beside each other, and survives interruption |
| `results` | the CSV of what the runs gave |
| `statistics` | intervals, and two one-sided tests |
| `tables`, `plots`, `report` | what `--report` writes |
| `evidence`, `claims` | what the documents conclude, judged |
| `explain` | `--explain`: which setting makes how much of a difference |
| `settings`, `factors`, `grid` | what differs between two configs, and its combinations, trained |
| `effects`, `effects_report` | what the combinations say, as numbers, tables and a figure |
"""
