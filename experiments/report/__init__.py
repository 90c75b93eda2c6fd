"""From run folders to figures, tables, claim checks and one page: the `airflower-report` command.

================  ===============================================================================
folders.py        finds run folders and reads them
spec.py           what an experiment's yaml says about its figures and claims
metrics.py        names, units, and one number per seed or draw
defaults.py       the page of runs whose yaml says nothing of it
devices.py        numbers of single devices
panels.py         what a panel shows: curves, points, bars, distributions, maps
figures.py        panels drawn: PNG, PDF, pictures of the page
views.py          a picture of the page, with the values that hovering shows
claims.py         qualitative claims, each with the numbers that confirm or contradict it
tidy.py           one CSV per kind of row
page.py           the self-contained HTML page (page.css, page.js)
================  ===============================================================================
"""
