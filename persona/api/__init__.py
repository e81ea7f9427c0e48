"""The public API, with one file per topic.

`import persona` offers its names and imports each one when it is first used.
"""
