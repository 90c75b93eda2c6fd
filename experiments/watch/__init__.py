"""Looking at a run while it goes on: the `airflower-watch` command.

================  ===============================================================================
state.py          what a run folder says: a snapshot
terminal.py       the snapshot in a terminal
serve.py          the same as a local web page (page.html), as JSON, and as text for Prometheus
================  ===============================================================================

It only reads the folder: of a simulation, a fleet or a sweep, on the machine where its records are.
"""
