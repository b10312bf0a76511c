"""`digitlab report`: runs as one HTML page that needs nothing else.

| module | what |
|---|---|
| `command` | the command line |
| `content` | what a run folder holds, and what of it is missing |
| `predictions` | what the run's network says of images, and how often it is right |
| `facts` | runs side by side: figures, circumstances, and the settings that differ |
| `figures` | curves and images, as addresses that hold their own data |
| `page` | the page, from `page.html.jinja` and `page.css` |
"""
