"""`digitlab report`: runs as one HTML page without external files.

| module | content |
|---|---|
| `command` | the command line |
| `content` | contents of a run folder, and which files are missing |
| `predictions` | the network's layers, predictions and worst mistakes |
| `page` | the page, from `page.html.jinja` and `page.css` |
"""
