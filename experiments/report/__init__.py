"""From run folders to figures, tables, claim checks and one page: the `airflower-report` command.

================  ===============================================================================
folders.py        finds run folders and reads them
spec.py           what an experiment's yaml says about its figures and claims
metrics.py        names, units, and one number per seed or draw
figures.py        panels: curves, points, bars, distributions
claims.py         qualitative claims, each with the numbers that confirm or contradict it
tidy.py           one CSV per kind of row
page.py           the self-contained HTML page
================  ===============================================================================
"""
