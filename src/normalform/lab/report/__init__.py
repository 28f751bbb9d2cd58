"""The report of a comparison: plots, and one page that a person would rather read than the table.

Findings (``findings.py``) are asked questions (``questions.py``), answered in words (``words.py``)
and drawn (``figures.py``) from tidy tables (``series.py``); ``page.py`` puts it together. Several
folders come on one page (``merging.py``), joined where they may be compared (``joined.py``).
"""

from normalform.lab.report.merging import merge as merge
from normalform.lab.report.page import write as write
