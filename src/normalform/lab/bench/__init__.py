"""``normalform bench``: how fast every norm is beside PyTorch's, and beside the memory.

``norms.py`` and ``models.py`` say what is measured, ``timing.py`` how, ``load.py`` whether others
disturbed it, ``floors.py`` what the limit is and ``targets.py`` what is to be reached;
``command.py`` runs it all, ``tables.py`` and ``pictures.py`` show the rows (``rows.py``).
"""

from normalform.lab.bench.command import Options as Options
from normalform.lab.bench.command import bench as bench
