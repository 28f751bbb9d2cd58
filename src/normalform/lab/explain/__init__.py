"""``normalform explain``: which elements share a mean, in pictures, words and numbers.

``subject.py`` reads what is asked, ``analogy.py`` says it in books, ``numbers.py`` computes an
example, ``terminal.py`` prints; ``relations.py`` runs what is equal, ``gallery.py`` makes the page.
"""

from normalform.lab.explain.command import Options as Options
from normalform.lab.explain.command import run as run
