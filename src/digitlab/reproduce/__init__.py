"""`digitlab reproduce`: the documents' figures, measured over seeds in both frameworks.

| module | what |
|---|---|
| `rows` | the rows: a config each, and what was published of it |
| `queue` | trains rows, several runs beside each other, and survives interruption |
| `results` | the CSV of what the runs gave |
| `statistics` | intervals, and two one-sided tests |
| `tables`, `plots` | what `--report` writes |
| `claims` | what the documents conclude, judged |
| `factors`, `explain` | `--explain`: which setting makes how much of a difference |
| `command` | the options |
"""
