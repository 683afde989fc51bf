"""Pages of the site that come from the code: the reference of Python, config fields, metrics, commands, results.json.

Every page is a function from the code to Markdown and knows nothing of Sphinx; `docs/conf.py` puts each in its place.
"""
