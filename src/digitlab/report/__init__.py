"""`digitlab report`: runs as one HTML page without external files.

| module | what |
|---|---|
| `command` | the command line |
| `content` | what a run folder holds, and what of it is missing |
| `predictions` | the network's layers, predictions and worst mistakes |
| `page` | the page, from `page.html.jinja` and `page.css` |
"""
